"""Rescaled channels: a weight that AWQ or SmoothQuant changed is the source's, times factors.

Transforms multiply the columns of a weight, or its rows where it makes the channels that another
one reads. A factor for every column and every row is fitted, and the rest compared as ever. That
what is multiplied here is divided elsewhere only the model can show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: What must be left of a vector's change when a weight's factors are taken from it.
_EXPLAINED = 0.5

#: Alternations of the fit of rows and columns; two leave 1e-6 where one side was rescaled.
_ROUNDS = 3

#: Logarithm of what coarse grids shrink a weight by, at most: two bits take 7 %.
_SHRUNK = 0.1

#: Share of an average row's or column's sum of squares that is next to nothing.
_NOTHING = 1e-3


def rescaled(source: torch.Tensor, found: torch.Tensor) -> torch.Tensor | None:
    """``source`` with the row and column factors that bring it nearest to ``found``.

    None where a factor is not positive: no rescaling turns signs. A row or column that rounding
    left next to nothing of has none, and keeps its values.

    source, found: (rows, columns) float32, of at least two rows and columns
    """
    import torch

    if min(source.shape) < 2:
        return None
    made = source
    for _ in range(_ROUNDS):
        for dim in (0, 1):
            weight = (made * made).sum(dim, keepdim=True)
            factor = (made * found).sum(dim, keepdim=True) / weight.clamp_min(1e-30)
            left = (found * found).sum(dim, keepdim=True)
            empty = (weight <= 0) | (left <= _NOTHING * left.mean())
            factor = torch.where(empty, torch.ones_like(factor), factor)
            if not bool((factor > 0).all()):
                return None
            made = made * factor
    return made


def explains(ratio: torch.Tensor, factor: torch.Tensor, *, inverse: bool) -> bool:
    """Whether the factors of a weight's channels are what a vector was changed by.

    Coarse grids shrink all channels alike, so a small factor that all share is left out.

    ratio: (channels,) of the changed vector to the source's; NaN where both are zero
    factor: (channels,) of the weight's columns, or rows; 0 where nothing is left of one
    inverse: the vector is divided by what the columns that read it are multiplied by
    """
    import torch

    told = ~ratio.isnan() & (factor != 0)
    ratio, factor = ratio[told], factor[told]
    if not len(ratio) or not bool((ratio > 0).all()) or not bool((factor > 0).all()):
        return False
    change, found = torch.log(ratio.double()), torch.log(factor.double())
    left = change + found if inverse else change - found
    left = left - left.mean().clamp(-_SHRUNK, _SHRUNK)
    return bool(left.norm() < _EXPLAINED * change.norm())


def channel_factors(source: torch.Tensor, found: torch.Tensor, dim: int) -> torch.Tensor:
    """The factor of every column (dim 0: summed over rows) or row that fits best; 1 for zeros."""
    import torch

    weight = (source * source).sum(dim)
    factor = (source * found).sum(dim) / weight.clamp_min(1e-30)
    return torch.where(weight > 0, factor, torch.ones_like(factor))
