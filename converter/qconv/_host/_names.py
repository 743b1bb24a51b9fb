"""Names as people type them: what counts in them, which are legal, and what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

#: What a plugin may call a method, backend, format, option or check.
LEGAL = re.compile(r"[a-z][a-z0-9_-]*")


def normalise(name: str) -> str:
    """``name`` without what does not count in it: case, ``_`` and ``-``."""
    return name.strip().casefold().replace("_", "").replace("-", "")


def closest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that ``name`` most resembles, or None when none is near."""
    by_key = {normalise(candidate): candidate for candidate in sorted(candidates, reverse=True)}
    matches = difflib.get_close_matches(normalise(name), sorted(by_key), n=1, cutoff=0.6)
    return by_key[matches[0]] if matches else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """``; did you mean X?``, or nothing when no candidate is near."""
    match = closest(name, candidates)
    return f"; did you mean {match}?" if match else ""


def listing(names: Iterable[str]) -> str:
    """Names for people, in the order given; ``none`` when there are none."""
    return ", ".join(names) or "none"
