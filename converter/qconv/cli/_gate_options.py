"""Reads gates as people write them: ``kl=0.05``, ``top1=90%``, ``vram=8GiB``."""

from __future__ import annotations

from collections.abc import Sequence

from qconv.errors import UsageError

from ._sizes import parse_share, parse_size

_SIZES, _SHARES = frozenset({"vram"}), frozenset({"top1", "top5"})


def parse_gates(texts: Sequence[str]) -> dict[str, float]:
    """Limits by name.

    Raises:
        UsageError: not of the form NAME=LIMIT, a gate given twice, or a limit that is no number.
    """
    gates: dict[str, float] = {}
    for text in texts:
        name, equals, limit = (part.strip() for part in text.partition("="))
        if not (name and equals and limit):
            raise UsageError(f"--gate '{text}' is not NAME=LIMIT; write e.g. kl=0.05")
        if name in gates:
            raise UsageError(f"--gate {name} is given twice; give each gate one limit")
        gates[name] = _limit(name, limit)
    return gates


def _limit(name: str, text: str) -> float:
    option = f"--gate {name}"
    if name in _SIZES:
        return float(parse_size(text, option))
    if name in _SHARES:
        return parse_share(text, option)
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option} '{text}' is not a number; write e.g. {name}=0.05") from None
