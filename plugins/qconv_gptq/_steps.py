"""What each column of a fit can hold, for all its columns at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qconv.grids import Grid, Parameters


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Steps:
    """``scale * code + offset``, or ``scale * book[code - lowest] + offset``.

    scale, inverse, offset: (runs, rows) float32; the inverse of a scale of 0 is 0
    run: neighbouring columns that share a scale and an offset
    book: (codes,) float32, from the lowest code on; None when a code stands for itself
    dtype: torch dtype of the codes
    """

    scale: torch.Tensor
    inverse: torch.Tensor
    offset: torch.Tensor
    run: int
    lowest: int
    highest: int
    book: torch.Tensor | None
    dtype: torch.dtype


def steps_of(grid: Grid, parameters: Parameters, shape: tuple[int, int]) -> Steps:
    """The steps of one fit; shape: its rows and columns."""
    import torch

    rows, columns = shape
    run = grid.column_run(columns)
    each = [grid.column(parameters, first) for first in range(0, columns, run)]
    scale = torch.stack([column.scale[:rows].expand(rows) for column in each])
    lowest, highest, book = each[0].lowest, each[0].highest, each[0].codebook
    return Steps(
        scale=scale,
        inverse=torch.where(scale == 0, 0.0, 1.0 / scale),
        offset=torch.stack([column.offset[:rows].expand(rows) for column in each]),
        run=run,
        lowest=lowest,
        highest=highest,
        book=None if book is None else book[lowest : highest + 1].contiguous(),
        dtype=getattr(torch, grid.layout(shape)["codes"][1]),
    )
