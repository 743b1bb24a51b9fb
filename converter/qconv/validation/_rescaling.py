"""Rescaled channels: a weight that AWQ or SmoothQuant changed is the source's, times factors.

Transforms multiply the columns of a weight, or its rows where it makes the channels that another
one reads. A factor for every column and every row is fitted, and the rest compared as ever. That
what is multiplied here is divided elsewhere only the model can show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Alternations of the fit of columns and rows; two leave 1e-6 where one side was rescaled.
_ROUNDS = 3

#: Share of an average row's or column's sum of squares that is next to nothing.
_NOTHING = 1e-3


def rescaled(source: torch.Tensor, found: torch.Tensor) -> torch.Tensor | None:
    """``source`` with the row and column factors that bring it nearest to ``found``.

    None where a factor is not positive: no rescaling turns signs. A row or column that rounding
    left next to nothing of tells none, and gets the median of the others': as large as it was,
    beside others that were divided by hundreds, it would be most of what these are fitted to.

    source, found: (rows, columns) float32, of at least two rows and columns
    """
    if min(source.shape) < 2:
        return None
    told = [_tells(source, found, dim) for dim in (1, 0)]
    if not all(bool(each.any()) for each in told):
        return None
    rows, columns = (each.nonzero().squeeze(1) for each in told)
    made, wanted = (each[rows][:, columns] for each in (source, found))
    factors = [made.new_ones(len(rows), 1), made.new_ones(1, len(columns))]
    for _ in range(_ROUNDS):
        for across in (1, 0):
            now = made * factors[0] * factors[1]
            weight = (now * now).sum(1 - across, keepdim=True)
            factor = (now * wanted).sum(1 - across, keepdim=True) / weight.clamp_min(1e-30)
            if not bool((factor > 0).all()):
                return None
            factors[across] = factors[across] * factor
    by_row = _filled(factors[0].squeeze(1), rows, source.shape[0])
    by_column = _filled(factors[1].squeeze(0), columns, source.shape[1])
    return source * by_row[:, None] * by_column


def _tells(source: torch.Tensor, found: torch.Tensor, dim: int) -> torch.Tensor:
    """Which rows or columns say what they were multiplied by. dim: that is summed over."""
    left = (found * found).sum(dim)
    told: torch.Tensor = (left > _NOTHING * left.mean()) & ((source * source).sum(dim) > 0)
    return told


def _filled(factors: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:
    """Factors at their places, and their median elsewhere."""
    return factors.median().expand(count).index_copy(0, places, factors)
