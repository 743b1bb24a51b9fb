"""The rounder behind ``clip``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.tensors import QuantTensor

if TYPE_CHECKING:
    import torch

    from qconv.grids import Grid
    from qconv.statistics import Statistics

_KEPT = 0.999  # share of a row's weights that are not clipped


class Clip:
    """Limit every row to the range of its smaller weights, then take the nearest grid values.

    Fewer steps are spent on outliers, at the price of moving them.
    """

    def quantize(
        self, weight: torch.Tensor, grid: Grid, statistics: Statistics | None = None
    ) -> QuantTensor:
        """Quantize ``weight`` onto ``grid``.

        weight: (out, in) float32; not modified
        statistics: of the weight's input; their importance goes to the grid's fit
        """
        importance = None if statistics is None else statistics.importance
        keep = max(1, int(weight.shape[1] * _KEPT))
        limit = weight.abs().kthvalue(keep, dim=1, keepdim=True).values  # (out, 1)
        codes, parameters = grid.quantize(weight.clamp(-limit, limit), importance)
        return QuantTensor(grid=grid, codes=codes, parameters=parameters)
