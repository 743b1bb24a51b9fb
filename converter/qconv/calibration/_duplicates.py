"""Finds documents that are nearly the same, and runs of tokens that two texts share.

Near duplicates: bottom-k sketches (Broder, "On the resemblance and containment of documents",
1997). The k smallest hashes of a document's shingles are a random sample of them; the share of
hashes that two documents have in common among the k smallest of both estimates the Jaccard
similarity of their shingles.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from qconv.calibration._document import normalised

if TYPE_CHECKING:
    import numpy as np
    import torch

    Hashes = np.ndarray[Any, np.dtype[np.uint64]]

#: Characters of a shingle: a few words, whatever the script.
_SHINGLE = 16
#: Hashes kept of a document: the estimate is within 0.1 of the truth.
_SKETCH = 128
#: Documents more alike than this count as the same.
_ALIKE = 0.7
#: Tokens of a run that no two disjoint texts share, as in GPT-3 (https://arxiv.org/abs/2005.14165,
#: appendix C).
RUN = 13
#: A run of so few distinct tokens is a ruler or blank space, which says nothing of its source.
_PLAIN_TOKENS = 3


class NearDuplicates:
    """Tells whether a document nearly repeats one that was kept before."""

    def __init__(self) -> None:
        self._sketches: list[frozenset[int]] = []
        self._holders: dict[int, list[int]] = defaultdict(list)

    def keep(self, text: str) -> bool:
        """False when ``text`` nearly repeats a kept one; otherwise it is kept."""
        sketch = _sketch(text)
        shared = Counter(number for each in sketch for number in self._holders.get(each, ()))
        if any(self._alike(sketch, number) >= _ALIKE for number, _ in shared.most_common(8)):
            return False
        for each in sketch:
            self._holders[each].append(len(self._sketches))
        self._sketches.append(sketch)
        return True

    def _alike(self, sketch: frozenset[int], number: int) -> float:
        other = self._sketches[number]
        lowest = set(sorted(sketch | other)[:_SKETCH])
        return len(lowest & sketch & other) / max(1, len(lowest))


def runs(tokens: torch.Tensor) -> set[int]:
    """Hashes of all runs of :data:`RUN` tokens but plain ones.

    tokens: (n,) int64
    """
    import numpy as np

    values = tokens.numpy().astype(np.uint64)
    if len(values) < RUN:
        return set()
    inside = np.lib.stride_tricks.sliding_window_view(values, RUN)  # (n - RUN + 1, RUN)
    ordered = np.sort(inside, axis=1)
    distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
    return set(_rolling(values, RUN)[distinct > _PLAIN_TOKENS].tolist())


def all_runs(windows: Iterable[torch.Tensor]) -> set[int]:
    """Hashes of the runs of all windows."""
    found: set[int] = set()
    for tokens in windows:
        found |= runs(tokens)
    return found


def _sketch(text: str) -> frozenset[int]:
    import numpy as np

    encoded = normalised(text).encode("utf-32-le", "replace")
    characters = np.frombuffer(encoded, dtype="<u4").astype(np.uint64)
    hashes = _rolling(characters, min(_SHINGLE, len(characters)))
    return frozenset(np.unique(hashes)[:_SKETCH].tolist())


def _rolling(values: Hashes, length: int) -> Hashes:
    """A hash of every run of ``length`` values: a polynomial modulo 2^64, then mixed."""
    import numpy as np

    count = len(values) - length + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for start in range(length):  # wraps around on purpose
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + _mixed(values[start : start + count])
    return _mixed(hashes)


def _mixed(values: Hashes) -> Hashes:
    """A bijection of uint64 without pattern: splitmix64 (https://prng.di.unimi.it/splitmix64.c)."""
    import numpy as np

    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
