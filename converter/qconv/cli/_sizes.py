"""Sizes, shares and times as people write and read them."""

from __future__ import annotations

import math
import re

from qconv.errors import UsageError

_UNITS = {
    "": 1,
    **{prefix: 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}i": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE | re.ASCII)
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)", re.ASCII)


def parse_size(text: str, option: str) -> int:
    """Bytes in ``800MB`` (10^6), ``8GiB`` (2^30) or ``1000``.

    Raises:
        UsageError: not a size, or zero; names ``option``.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    nbytes = int(float(match[1]) * unit) if match and unit else 0
    if nbytes < 1:
        raise UsageError(f"{option} '{text}' is not a size; write e.g. 800MB, 8GiB or 1000000")
    return nbytes


def parse_share(text: str, option: str) -> float:
    """The share in ``5%`` or ``0.05``, between 0 and 1.

    Raises:
        UsageError: not a share; names ``option``.
    """
    match = _SHARE.fullmatch(text.strip())
    share = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= share <= 1:
        raise UsageError(
            f"{option} '{text}' is not a share; write a percentage such as 5%, or 0.05 "
            "(from 0% to 100%)"
        )
    return share


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


def _scaled(number: float, units: tuple[str, ...]) -> str:
    power = 0
    while number >= 999.95 and power < len(units) - 1:  # 999.95 would print as 1000.0
        number /= 1000
        power += 1
    return f"{number:.1f} {units[power]}" if power else f"{number:.0f} {units[0]}"
