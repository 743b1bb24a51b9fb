"""Names, sizes and times as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def printable(text: str) -> str:
    """``text`` with control characters escaped, so that names in a file cannot steer the terminal.

    Line feeds stay: messages have them.
    """
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def format_bytes(nbytes: float) -> str:
    """Bytes for people, decimal units: ``105.5 MB``."""
    return _scaled(nbytes, ("bytes", "kB", "MB", "GB", "TB", "PB"))


def format_count(count: float) -> str:
    """A number for people: ``134.5 M``."""
    return _scaled(count, ("", "k", "M", "G", "T", "P")).strip()


def format_seconds(seconds: float) -> str:
    """A time for people: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def first_of(told: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first so many of what there is to say, and how many more there are."""
    said = separator.join(told[:most])
    if len(told) <= most:
        return said
    before = " " if separator == ", " else separator
    return f"{said}{before}and {len(told) - most} more"


def _scaled(number: float, units: tuple[str, ...]) -> str:
    power = 0
    while number >= 999.95 and power < len(units) - 1:  # 999.95 would print as 1000.0
        number /= 1000
        power += 1
    return f"{number:.1f} {units[power]}" if power else f"{number:.0f} {units[0]}"
