"""Sizes and shares as people write them, and the same the other way round."""

from __future__ import annotations

import re
from decimal import Decimal

from qconv._words import format_bytes, format_count, format_seconds
from qconv.errors import UsageError

__all__ = ["format_bytes", "format_count", "format_seconds", "parse_share", "parse_size"]

_UNITS = {
    "": 1,
    **{prefix: 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}i": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}
#: An exbibyte, which no machine has.
_BEYOND = 1 << 60

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE | re.ASCII)
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)", re.ASCII)


def parse_size(text: str, option: str) -> int:
    """Bytes in ``800MB`` (10^6), ``8GiB`` (2^30) or ``1000``.

    Raises:
        UsageError: not a size, zero, or more than any machine has; names ``option``.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    nbytes = int(Decimal(match[1]) * unit) if match and unit else 0
    if not 1 <= nbytes < _BEYOND:
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
