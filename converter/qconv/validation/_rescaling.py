"""Rescaled channels: a weight that AWQ or SmoothQuant changed is the source's, times factors.

Transforms multiply the columns of a weight, or its rows where it makes the channels that another
one reads. A factor for every column and every row is fitted, and the rest compared as ever. That
what is multiplied here is divided elsewhere only the model can show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Alternations of the fit of rows and columns; two leave 1e-6 where one side was rescaled.
_ROUNDS = 3

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
