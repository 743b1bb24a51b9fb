"""Statistics of a block's linear inputs: one Gram matrix for all linears that share an input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from qconv.errors import Unsupported
from qconv.statistics import Statistics, StatisticsSum

if TYPE_CHECKING:
    import torch

#: What tells that two products have the same input: memory, place in it, size, and version.
_Key = tuple[int, int, int, int, int]


class Collector:
    """Adds up what every linear weight is multiplied with.

    Linears that get one and the same input in every window share one sum. An expert counts the
    tokens that are routed to it, and no others.
    """

    def __init__(self, *, gram: bool) -> None:
        self._gram = gram
        self._sums: list[StatisticsSum] = []
        self._of: dict[str, int] = {}
        self._inputs: dict[str, list[_Key]] = {}
        self._added: dict[tuple[int, _Key], None] = {}
        self._rows: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []
        self._first_with: dict[_Key, int] = {}
        self._start = 0

    def window(self, start: int) -> None:
        """A window begins. start: number of its first token, counted over all windows."""
        self._start = start
        self._inputs, self._added, self._rows = {}, {}, {}
        self._first_with, self._alive = {}, []

    def seen(self, sources: tuple[str, ...], x: torch.Tensor, result: torch.Tensor) -> None:
        """The weights ``sources`` are multiplied with ``x``."""
        del result
        key = _key(x)
        self._alive.append(x)  # until the window ends, so that its memory is no other's
        for source in sources:
            self._inputs.setdefault(source, []).append(key)
            number = self._of.get(source)
            if number is None:
                number = self._first_with.get(key)
                if number is None:
                    number = self._new(x)
                self._of[source] = number
            self._first_with.setdefault(key, number)
            self._add(number, key, x)

    def end(self) -> None:
        """A window is over.

        Raises:
            Unsupported: linears that shared their input so far do not in this window.
        """
        groups: dict[int, str] = {}
        for source, number in self._of.items():
            first = groups.setdefault(number, source)
            if self._inputs.get(source) != self._inputs.get(first):
                raise Unsupported(
                    f"linear weights {first!r} and {source!r} share an input for some tokens but "
                    "not for others; such a model cannot be calibrated, use --method rtn"
                )
        self._alive = []

    def total(self, features: Mapping[str, int]) -> dict[str, Statistics]:
        """Statistics by source; one object for linears that share an input.

        features: width of the input of every linear; one that saw no token gets empty statistics
        """
        totals = [each.total() for each in self._sums]
        self._sums = []
        found = {source: totals[number] for source, number in self._of.items()}
        for source, width in features.items():
            if source not in found:
                found[source] = StatisticsSum(width, gram=False).total()
        return found

    def _new(self, x: torch.Tensor) -> int:
        self._sums.append(StatisticsSum(x.shape[-1], device=x.device, gram=self._gram))
        return len(self._sums) - 1

    def _add(self, number: int, key: _Key, x: torch.Tensor) -> None:
        if (number, key) in self._added:
            return
        self._added[number, key] = None
        rows = x.reshape(-1, x.shape[-1])
        done = self._rows.get(number, 0)
        self._sums[number].add(rows, self._start + done)
        self._rows[number] = done + len(rows)


def _key(x: torch.Tensor) -> _Key:
    return (
        x.untyped_storage().data_ptr(),
        int(x.storage_offset()),
        x.numel(),
        x.shape[-1],
        x._version,
    )


def names(sources: Iterable[str]) -> str:
    """Source names for a message."""
    return ", ".join(repr(each) for each in sources)
