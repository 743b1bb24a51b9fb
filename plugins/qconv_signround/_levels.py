"""The values codes stand for, in order: learned rounding moves along them, not along codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qconv.grids import ColumnGrid


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Levels:
    """What a grid's codes are worth before scale and offset, lowest first.

    A *place* is a position among the levels: whole at a level, in between it is interpolated, so
    that the nearest whole place is the nearest level.

    lowest, highest: first and last place
    values, codes: (levels,) of each place; None when a code stands for itself and is its own place
    """

    lowest: int
    highest: int
    values: torch.Tensor | None = None
    codes: torch.Tensor | None = None

    @classmethod
    def of(cls, column: ColumnGrid) -> Levels:
        """The levels of any column: a grid has the same in all of them."""
        import torch

        if column.codebook is None:
            return cls(lowest=column.lowest, highest=column.highest)
        codes = torch.arange(column.lowest, column.highest + 1, device=column.codebook.device)
        book = column.codebook[codes].float()
        order = book.argsort(stable=True)
        # Two codes of one value, as FP4's zeros, are one place.
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = book[order][1:] != book[order][:-1]
        order = order[first]
        return cls(lowest=0, highest=len(order) - 1, values=book[order], codes=codes[order])

    def place(self, values: torch.Tensor) -> torch.Tensor:
        """Where ``values`` lie; beyond the ends the last gap goes on. May be ``values`` itself."""
        import torch

        levels = self.values
        if levels is None:
            return values
        below = torch.bucketize(values, levels[1:-1], right=True)  # the level at or below
        gap = levels[1:] - levels[:-1]
        return below + (values - levels[below]) / gap[below]

    def value(self, places: torch.Tensor) -> torch.Tensor:
        """What whole places are worth; ``places`` itself when a code stands for itself."""
        return places if self.values is None else self.values[places.long()]

    def code(self, places: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The codes of whole places."""
        return places.to(dtype) if self.codes is None else self.codes[places.long()].to(dtype)
