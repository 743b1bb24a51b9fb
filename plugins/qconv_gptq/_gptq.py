"""The rounder behind ``gptq``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.tensors import QuantTensor

from ._settings import Settings

if TYPE_CHECKING:
    import torch

    from qconv.grids import Grid
    from qconv.statistics import Statistics


class Gptq:
    """Rounds columns one after another, each making good what those before it lost.

    options: ``damp``, ``order``, ``refits``, as text

    Raises:
        UsageError: an option is unknown or out of range.
    """

    def __init__(self, **options: str) -> None:
        self._settings = Settings.from_options(options)

    def quantize(
        self, weight: torch.Tensor, grid: Grid, statistics: Statistics | None = None
    ) -> QuantTensor:
        """Fit and round, one fit of the grid (group, super-block, row) after another.

        Parameters are fitted when it is their fit's turn, to the weights as they then are.
        Feedback uses exactly the values that the grid decodes, but within a fit those of
        ``grid.column``.

        weight: (out, in) float32, any device; not modified
        statistics: of the weight's input, Gram matrix included; without, or where no token came
            through, the grid's own rounding must do

        Peak memory: the weight in float32 twice, and what :func:`._hessian.factor` takes.

        Raises:
            Unsupported: the statistics hold no Gram matrix, or none of this input.
            UnsupportedGrid: as the grid's fit.
        """
        from ._fits import round_fits
        from ._hessian import factor, gram_of, rounding_order

        columns = weight.shape[-1]
        gram = None if statistics is None else gram_of(statistics, columns).to(weight.device)
        if gram is None or not bool((gram.diagonal() > 0).any()):
            codes, parameters = grid.quantize(weight)
            return QuantTensor(grid=grid, codes=codes, parameters=parameters)
        grid.check_shape((weight.shape[0], columns))
        size, by_activation = grid.columns(columns), self._settings.activation_order
        order = rounding_order(gram.diagonal(), size, by_activation=by_activation)
        hessian = factor(gram, order, self._settings.damp)
        return round_fits(weight, grid, hessian, self._settings.refits)
