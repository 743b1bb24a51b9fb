"""What each column of a fit can hold, for all its columns at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qconv.grids import Grid, Parameters


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Book:
    """The values of codes that do not stand for themselves, in ascending order.

    values: (places,) float32, each value once
    codes: (places,) int32, of each value; the lowest code where several have it
    bounds: (2**k - 1,) float32: half way from each value to the next, then infinities: a value
        belongs as many places up as there are bounds below it
    """

    values: torch.Tensor
    codes: torch.Tensor
    bounds: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor, lowest: int) -> Book:
        """values: (codes,) float32, from the code ``lowest`` on."""
        import torch

        order = values.argsort(stable=True)
        ascending = values[order]
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = ascending[1:] != ascending[:-1]
        ascending = ascending[first]
        bounds = (ascending[:-1] + ascending[1:]) / 2
        missing = (1 << len(bounds).bit_length()) - 1 - len(bounds)
        bounds = torch.nn.functional.pad(bounds, (0, missing), value=torch.inf)
        codes = (order[first] + lowest).to(torch.int32)
        return cls(values=ascending, codes=codes, bounds=bounds)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Steps:
    """``scale * code + offset``, or ``scale * (the book's value of the code) + offset``.

    scale, inverse, offset: (runs, rows) float32; the inverse of a scale of 0 is 0
    run: neighbouring columns that share a scale and an offset
    book: None when a code stands for itself
    dtype: torch dtype of the codes
    """

    scale: torch.Tensor
    inverse: torch.Tensor
    offset: torch.Tensor
    run: int
    lowest: int
    highest: int
    book: Book | None
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
        book=None if book is None else Book.of(book[lowest : highest + 1], lowest),
        dtype=getattr(torch, grid.layout(shape)["codes"][1]),
    )
