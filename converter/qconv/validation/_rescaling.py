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

    None where a factor is not positive: no rescaling turns signs. What rows and columns say of each
    other is told by those that hold something: next to nothing, beside others that were divided by
    hundreds, would be most of what these are fitted to. One that rounding left nothing at all of
    gets the median of the others' factors.
    Peak memory: four tensors of this size; six where some hold nothing.

    source, found: (rows, columns) float32, of at least two rows and columns
    """
    if min(source.shape) < 2:
        return None
    told = [_holds(source, found, dim) for dim in (1, 0)]
    if not all(bool(each.any()) for each in told):
        return None
    made, wanted = (_among(each, *told) for each in (source, found))
    factors = [made.new_ones(made.shape[0], 1), made.new_ones(1, made.shape[1])]
    for _ in range(_ROUNDS):
        for across in (1, 0):
            now = made * factors[0] * factors[1]
            factor = _fitted(now, wanted, 1 - across)
            if not bool((factor > 0).all()):
                return None
            factors[across] = factors[across] * factor
    by_row, by_column = (
        _filled(factor.flatten(), known) for factor, known in zip(factors, told, strict=True)
    )
    near = source * by_row[:, None] * by_column
    rows, columns = told
    if not bool(columns.all()):
        near = near * _of_others(near[rows], found[rows], 0, columns)
    if not bool(rows.all()):
        near = near * _of_others(near[:, columns], found[:, columns], 1, rows)
    return near


def _fitted(now: torch.Tensor, wanted: torch.Tensor, dim: int) -> torch.Tensor:
    """The factors that bring ``now`` nearest to ``wanted``; 1 where there is nothing."""
    import torch

    weight = (now * now).sum(dim, keepdim=True)
    factor = (now * wanted).sum(dim, keepdim=True) / weight.clamp_min(1e-30)
    return torch.where(weight > 0, factor, torch.ones_like(factor))


def _holds(source: torch.Tensor, found: torch.Tensor, dim: int) -> torch.Tensor:
    """Which rows or columns tell what others were multiplied by. dim: that is summed over."""
    left = (found * found).sum(dim)
    holds: torch.Tensor = (left > _NOTHING * left.mean()) & ((source * source).sum(dim) > 0)
    return holds


def _among(values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    if bool(rows.all()) and bool(columns.all()):
        return values
    return values[rows][:, columns]


def _filled(factors: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Factors where they are known, and their median elsewhere."""
    filled = factors.median().repeat(len(known))
    filled[known] = factors
    return filled


def _of_others(
    near: torch.Tensor, found: torch.Tensor, dim: int, known: torch.Tensor
) -> torch.Tensor:
    """Factors of rows or columns that told nothing, if they hold anything; 1 for all others.

    near, found: where the other dimension tells
    """
    import torch

    factor = _fitted(near, found, dim)
    there = (~known).unsqueeze(dim) & (found != 0).any(dim, keepdim=True) & (factor > 0)
    return torch.where(there, factor, torch.ones_like(factor))
