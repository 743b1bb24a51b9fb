"""The rounder behind ``rtn``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.tensors import QuantTensor

if TYPE_CHECKING:
    import torch

    from qconv.grids import Grid
    from qconv.statistics import Statistics


class Rtn:
    """Round to nearest on the grid's own fit. Rows are treated each on its own."""

    takes_stored = True

    def quantize(
        self, weight: torch.Tensor, grid: Grid, statistics: Statistics | None = None
    ) -> QuantTensor:
        """Fit the grid's parameters to ``weight`` and take the nearest codes.

        weight: (out, in) float32, float16 or bfloat16, any device; not modified
        statistics: of the weight's input; their importance steers the fit
        """
        importance = None if statistics is None else statistics.importance.to(weight.device)
        if not getattr(grid, "takes_stored", False):
            weight = weight.float()
        codes, parameters = grid.quantize(weight, importance)
        return QuantTensor(grid=grid, codes=codes, parameters=parameters)
