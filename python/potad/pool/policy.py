"""Which object is evicted next: S3-FIFO, by bytes.

Policy. Three first-in first-out queues, of Yang, Zhang, Qiu, Yue and Rashmi ("FIFO queues are all
you need for cache eviction", SOSP 2023). What comes in goes into the *small* queue, a tenth of the
memory. At its end, what was used more than once since goes on into the *main* queue, and the rest
is evicted, but remembered in a queue of *ghosts*: if a ghost comes back, it goes to the main queue
at once. At the end of the main queue what was used since goes round again, once for each use up to
three.

Why this one. A scan goes through the small queue and touches nothing else, which is what LRU cannot
do, nor SIEVE, and a use is a counter, nothing is moved: ARC and LRU move an entry with each.
CLOCK-Pro comes close to it and is much harder to get right.

What is different here. Objects have sizes, so shares are of bytes. A ghost is an
object that is swapped out, so it costs an entry in a queue and no more. What cannot go, since it is
pinned, is in use and goes round.

All of it is done with the pool locked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from potad.pool.object import Object

# The small queue's share of the memory, which its authors found good for nearly all traces.
_SMALL_SHARE = 10

# Uses that are counted.
_USES_MAX = 3

# Uses, while it is in the small queue, with which an object goes on into the main one.
_USES_TO_STAY = 2


class Queue:
    """A first-in first-out queue of objects, which knows how many bytes they are."""

    def __init__(self) -> None:
        self._objects: OrderedDict[Object, None] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[Object]:
        """From the one that is next to go."""
        return iter(self._objects)

    def __contains__(self, it: Object) -> bool:
        return it in self._objects

    def push(self, it: Object) -> None:
        """Adds an object as the last to go."""
        self._objects[it] = None
        self.size += it.size

    def push_back(self, it: Object) -> None:
        """Adds an object as the next to go."""
        self.push(it)
        self._objects.move_to_end(it, last=False)

    def pop(self) -> Object:
        """Takes the object out that is next to go."""
        it, _ = self._objects.popitem(last=False)
        self.size -= it.size
        return it

    def remove(self, it: Object) -> bool:
        """Takes an object out, if it is in; whether it was."""
        if it not in self._objects:
            return False
        del self._objects[it]
        self.size -= it.size
        return True


class Policy:
    """The queues of a pool: small and main together have what is in memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.small = Queue()
        self.main = Queue()
        self.ghosts = Queue()

    def __iter__(self) -> Iterator[Object]:
        """All that is in memory, but for victims that are being written."""
        return chain(self.small, self.main)

    def insert(self, it: Object) -> None:
        """An object has come into memory."""
        it.uses = 0
        (self.main if self.ghosts.remove(it) else self.small).push(it)

    def put_back(self, it: Object) -> None:
        """A victim stays after all."""
        self.ghosts.remove(it)
        self.main.push(it)

    def use(self, it: Object) -> None:
        """An object in memory was used."""
        if it.uses < _USES_MAX:
            it.uses += 1

    def remove(self, it: Object) -> None:
        """An object has left memory otherwise than as a victim, or is no more."""
        if not self.small.remove(it) and not self.main.remove(it):
            self.ghosts.remove(it)

    def victim(self) -> Object | None:
        """Takes out the object that is to go next, of those that can; None if none can."""
        # Those that are being written: neither used nor to be had. They count in their queue, so
        # that the other one does not go for them.
        aside: list[tuple[Queue, Object]] = []
        aside_small = 0
        # Each object comes up once, and once more for each of its uses.
        tries = len(self.small) + (len(self.main) + len(self.small)) * (_USES_MAX + 1)
        found = None
        for _ in range(tries):
            is_over = (self.small.size + aside_small) * _SMALL_SHARE >= self.limit
            is_small = len(self.small) and (is_over or not len(self.main))
            queue = self.small if is_small else self.main
            if not len(queue):
                break
            it = queue.pop()
            if it.is_moving:
                aside.append((queue, it))
                aside_small += it.size if queue is self.small else 0
            elif self._stays(it, queue):
                self.main.push(it)
            else:
                found = it
                break
        for queue, it in reversed(aside):
            queue.push_back(it)
        if found is not None:
            self._remember(found)
        return found

    def clean_victim(self) -> Object | None:
        """Takes out an object that can go without being written, used or not, if there is one."""
        for it in self:
            if it.clean and not it.pins and not it.is_moving and not it.lingers():
                self.remove(it)
                self._remember(it)
                return it
        return None

    def _stays(self, it: Object, queue: Queue) -> bool:
        """Whether an object that has come to a queue's end goes into the main one."""
        if it.pins or it.lingers():
            return True
        if queue is self.small:
            stays, it.uses = it.uses >= _USES_TO_STAY, 0
            return stays
        stays, it.uses = it.uses > 0, max(it.uses - 1, 0)
        return stays

    def _remember(self, it: Object) -> None:
        self.ghosts.push(it)
        while self.ghosts.size * _SMALL_SHARE > self.limit * (_SMALL_SHARE - 1):
            self.ghosts.pop()

    def next_to_go(self) -> Iterator[Object]:
        """Objects about in the order in which they will go if nobody uses them."""
        small = (it for it in self.small if it.uses < _USES_TO_STAY)
        main = (it for it in self.main if not it.uses)
        is_small = self.small.size * _SMALL_SHARE >= self.limit or not len(self.main)
        return chain(small, main) if is_small else chain(main, small)
