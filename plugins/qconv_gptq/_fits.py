"""The fits of a weight (groups, super-blocks, rows), rounded one after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.tensors import QuantTensor

from ._rounding import round_columns
from ._steps import steps_of

if TYPE_CHECKING:
    import torch

    from qconv.grids import Grid, Parameters

    from ._hessian import Hessian


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """A fit's parameters, and its codes (columns, rows) in the order of rounding.

    loss: (rows,) float32, as :class:`._rounding.Rounded` says
    """

    parameters: Parameters
    codes: torch.Tensor
    loss: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """One fit, when it is its turn. Columns are in the order of rounding.

    target: (columns, rows) float32: the weights as the columns before left them
    place: (columns,) int64: where each column stands in the fit
    energy: (columns,) float32, how much each input matters to the fit
    factor: (columns, columns) float32, unit upper triangular
    d: (columns,) float32
    """

    grid: Grid
    target: torch.Tensor
    place: torch.Tensor
    energy: torch.Tensor
    factor: torch.Tensor
    d: torch.Tensor

    def best(self, refits: int) -> Choice:
        """The codes on the grid's own fit, or where a refit to them loses less, on that."""
        back = self.place.argsort()
        weight = self.target[back].t().contiguous()  # (rows, columns)
        best = self._rounded(self.grid.fit(weight, self.energy[back]))
        for _ in range(refits):
            factor = self._best_factor(best)
            other = self._rounded(self.grid.rescaled(best.parameters, factor))
            best = _better(best, other, rows_independent=self.grid.rows_independent)
        return best

    def decoded(self, choice: Choice) -> torch.Tensor:
        """What the grid makes of it: (columns, rows) float32, in the order of rounding."""
        codes = choice.codes[self.place.argsort()].t().contiguous()
        return self.grid.decode(codes, choice.parameters).t()[self.place]

    def _rounded(self, parameters: Parameters) -> Choice:
        columns, rows = self.target.shape
        steps = steps_of(self.grid, parameters, (rows, columns))
        rounded = round_columns(self.target, steps, self.place, self.factor, self.d)
        return Choice(parameters=parameters, codes=rounded.codes, loss=rounded.loss)

    def _best_factor(self, choice: Choice) -> torch.Tensor:
        """The factor on all values that loses least, as ``loss`` counts: (rows or 1, 1) float32."""
        import torch

        spread = self.factor.t()
        v, w = spread @ self.decoded(choice), spread @ self.target
        weighed = self.d[:, None] * v
        dot, square = (weighed * w).sum(dim=0), (weighed * v).sum(dim=0)
        if not self.grid.rows_independent:
            dot, square = dot.sum(dim=0, keepdim=True), square.sum(dim=0, keepdim=True)
        return torch.where((dot > 0) & (square > 0), dot / square, 1.0)[:, None]


def round_fits(weight: torch.Tensor, grid: Grid, hessian: Hessian, refits: int) -> QuantTensor:
    """Round all fits, in the Hessian's order, feeding the error of each into those after it.

    weight: (rows, in) float32
    refits: see :class:`._settings.Settings`
    """
    import torch

    columns, order = weight.shape[1], hessian.order
    size = grid.columns(columns)
    W = weight.detach().t()[order]  # (in, rows)
    E = torch.empty_like(W)
    codes, parameters = [], {}
    for start, first in zip(range(0, columns, size), order[::size].tolist(), strict=True):
        part = slice(start, start + size)
        U = hessian.upper[:, part]
        target = W[part]
        if start:
            target = torch.addmm(target, U[:start].t(), E[:start], alpha=-1.0)
        fit = Fit(
            grid=grid,
            target=target,
            place=order[part] % size,
            energy=hessian.energy[part],
            factor=U[part].contiguous(),
            d=hessian.d[part],
        )
        best = fit.best(refits)
        E[part] = fit.decoded(best) - W[part]
        codes.append(best.codes)
        parameters[first // size] = best.parameters
    return QuantTensor(
        grid=grid,
        codes=torch.cat(codes)[order.argsort()].t().contiguous(),
        parameters=_joined(parameters),
    )


def _better(best: Choice, other: Choice, *, rows_independent: bool) -> Choice:
    """Per row whichever loses less; the first where they tie."""
    import torch

    if not rows_independent:
        return other if other.loss.double().sum() < best.loss.double().sum() else best
    wins = other.loss < best.loss  # (rows,)
    return Choice(
        parameters={
            name: torch.where(
                wins.view(-1, *[1] * (value.dim() - 1)), other.parameters[name], value
            )
            for name, value in best.parameters.items()
        },
        codes=torch.where(wins, other.codes, best.codes),
        loss=torch.where(wins, other.loss, best.loss),
    )


def _joined(parameters: Mapping[int, Parameters]) -> Parameters:
    """The parameters of all fits, in the order of the columns they are of."""
    import torch

    fits = [parameters[number] for number in sorted(parameters)]
    if len(fits) == 1:
        return fits[0]
    return {name: torch.cat([fit[name] for fit in fits], dim=1) for name in fits[0]}
