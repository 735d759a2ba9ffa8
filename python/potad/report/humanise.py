"""Numbers as people read them: binary multiples for bytes, three significant digits."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(size_bytes: float) -> str:
    """Bytes in the largest unit that leaves at least one of it.

    >>> size(0), size(4096), size(510656512), size(1 << 40)
    ('0 B', '4 KiB', '487 MiB', '1 TiB')
    """
    unit = 0
    while abs(size_bytes) >= 1024 and unit < len(_UNITS) - 1:
        size_bytes /= 1024
        unit += 1
    return f"{significant(size_bytes)} {_UNITS[unit]}"


def significant(value: float) -> str:
    """Three significant digits without trailing zeros; whole numbers are left whole.

    >>> significant(3.14159), significant(1023.7), significant(0.5), significant(12.0)
    ('3.14', '1,024', '0.5', '12')
    """
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def decimals(value: float) -> str:
    """Two decimals; below a tenth as many more as show two digits, four at most.

    >>> decimals(4.613), decimals(0.0), decimals(0.0123), decimals(0.00227), decimals(0.00001)
    ('4.61', '0.00', '0.012', '0.0023', '0.0000')
    """
    digits = 2 if value == 0 or value >= 0.1 else 3 if value >= 0.01 else 4
    return f"{value:.{digits}f}"


def count(value: int) -> str:
    """A whole number with its thousands apart.

    >>> count(1200000)
    '1,200,000'
    """
    return f"{value:,}"


def share(value: float) -> str:
    """A share of 1 as a percentage; what is more than nothing is never shown as nothing.

    >>> share(0.973), share(0.0), share(0.0001), share(1.0), share(0.9999)
    ('97.3 %', '0 %', '<0.1 %', '100 %', '>99.9 %')
    """
    if value in (0, 1):
        return f"{value * 100:.0f} %"
    if value < 0.0005:
        return "<0.1 %"
    if 0.9995 <= value < 1:
        return ">99.9 %"
    return f"{value * 100:.1f} %"


def duration(seconds: float) -> str:
    """Down to nanoseconds below a second, minutes and seconds from two minutes on.

    >>> duration(0.0123), duration(35.77), duration(125.0), duration(2.5e-6), duration(4e-7)
    ('12.3 ms', '35.8 s', '2 min 5 s', '2.5 µs', '400 ns')
    """
    if 0 < seconds < 1e-6:
        return f"{significant(round(seconds * 1e9, 3))} ns"
    if 0 < seconds < 1e-3:
        return f"{significant(round(seconds * 1e6, 3))} µs"
    if seconds < 1:
        return f"{significant(seconds * 1000)} ms"
    if seconds < 120:
        return f"{significant(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
