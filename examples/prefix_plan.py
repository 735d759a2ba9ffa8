"""An address plan: who has which network, for IPv4 and IPv6.

Nothing in a space has to be memory. Here the granule is one IPv4 address, or one IPv6 /64, a block
is a network (a power of two, aligned to its size), and a run any range of addresses.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import potad

Network = IPv4Network | IPv6Network


class Plan:
    """Networks that are handed out of one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix: Network = ipaddress.ip_network(prefix)
        # Of IPv6 addresses the upper half: an interface has the lower one to itself.
        self.shift = 64 if self.prefix.version == 6 else 0
        first, count = int(self.prefix[0]), self.prefix.num_addresses
        self.space = potad.Space(count >> self.shift, granule=1, base=first >> self.shift)

    def assign(self, length: int, owner: Any, kind: potad.Kind | None = None) -> Network:
        """A network with a prefix of this length."""
        size = 1 << (self.prefix.max_prefixlen - self.shift - length)
        return self._network(self.space.alloc(size, kind=kind, owner=owner), size)

    def reserve(self, network: str, owner: Any) -> Network:
        """This very network, or `OutOfSpace`."""
        wanted = ipaddress.ip_network(network)
        size = wanted.num_addresses >> self.shift
        return self._network(
            self.space.alloc_at(int(wanted[0]) >> self.shift, size, owner=owner), size
        )

    def release(self, network: Network) -> None:
        """Takes a network back; its neighbours that are free become one with it."""
        self.space.free(int(network[0]) >> self.shift)

    def whose(self, address: str) -> tuple[Network, Any] | None:
        """The network that an address belongs to, and who has it."""
        found = self.space.lookup(int(ipaddress.ip_address(address)) >> self.shift)
        return found and (self._network(found.start, found.size), found.owner)

    def largest(self) -> int:
        """The shortest prefix that can be had now."""
        return self.prefix.max_prefixlen - self.shift - self.space.largest_free.bit_length() + 1

    def _network(self, start: int, size: int) -> Network:
        length = self.prefix.max_prefixlen - self.shift - (size - 1).bit_length()
        return ipaddress.ip_network((start << self.shift, length))


def main() -> None:
    """Plans a small site."""
    site = Plan("10.20.0.0/16")
    site.reserve("10.20.0.0/24", "routers")
    office, guests = site.assign(22, "office"), site.assign(24, "guests")
    print(f"office {office}, guests {guests}; a /{site.largest()} is left in one piece")
    print(f"10.20.4.77 belongs to {site.whose('10.20.4.77')}")
    site.release(office)
    print(site.space.report())

    world = Plan("2001:db8::/32")
    home = world.assign(56, "a home")
    print(f"{home} of {world.prefix}, a /{world.largest()} is left in one piece")
    assert world.whose(str(home[12345])) == (home, "a home")
    for plan in (site, world):
        plan.space.check()


if __name__ == "__main__":
    main()
