"""One weight whose rounding is learned: what it holds now, how a gradient moves it, what it stores.

With scale ``s``, offset ``o`` and levels from the grid's fit, a rounding offset ``V`` per weight
and a factor ``m`` per group, the weight that the block runs on is

    place = clamp(round(place_of((W - o m) / (s m)) + V), lowest, highest)
    W~    = (s value_of(place) + o) m

(as SignRound, https://arxiv.org/abs/2309.05516, but with one factor for scale and offset).
The gradient passes ``round`` straight through, so by ``g = dL/dW~``

    dL/dV ~ g s                 dL/dm ~ sum over the group of g (W~ - W [not clamped])

up to factors that are positive, and only the signs are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.tensors import QuantTensor

from ._levels import Levels

if TYPE_CHECKING:
    import torch

    from qconv.grids import Grid, Parameters

#: Factors further from 1 than this would leave the start's fit, which has clipped already.
_FACTORS = (0.5, 1.5)


class LearnedWeight:
    """A weight, its start on the grid, and the offsets and factors learned since.

    Tensors are (rows, groups, runs, run): a group shares one fit, a run one scale and offset.

    Memory: the weight twice in float32 (offsets, values now), a byte per weight each for the codes
    of the start and what is clamped; four times the weight more while it works.
    """

    def __init__(self, grid: Grid, weight: torch.Tensor, start: QuantTensor) -> None:
        """weight: (out, in) float32, not modified; start: the same on ``grid``."""
        import torch

        self._grid, self._start = grid, start
        scale, offset, self._levels = _spread(grid, start.parameters, weight.shape)
        rows, columns = weight.shape
        groups = columns // grid.columns(columns)
        run = _run(scale, offset, columns // groups)
        self._run = run
        self._weight = weight.detach().view(rows, groups, -1, run)
        self._scale = scale[:, ::run].reshape(rows, groups, -1, 1)
        self._offset = offset[:, ::run].reshape(rows, groups, -1, 1)
        self._inverse = _inverse(self._scale)
        self._shift = torch.zeros_like(self._weight)
        shape = (rows, groups, 1, 1) if grid.rows_independent else (1, 1, 1, 1)
        self._factor = self._weight.new_ones(shape)
        self._values = self._weight
        self._clamped = torch.zeros_like(self._weight, dtype=torch.bool)

    def values(self) -> torch.Tensor:
        """The weight that the block is to run on: (out, in) float32, of its own memory."""
        places = self._places(self._inverse / self._factor, -self._offset * self._inverse)
        whole = places.clamp(self._levels.lowest, self._levels.highest)
        self._clamped = places != whole
        values = self._levels.value(whole) * (self._scale * self._factor)
        self._values = values.add_(self._offset * self._factor)
        return self._values.view(self._start.shape)

    def step(self, gradient: torch.Tensor, rate: float, factor_rate: float) -> None:
        """Move offsets and factors against the signs of their gradients.

        gradient: of the loss by what :meth:`values` gave last, (out, in); not modified
        """
        slope = gradient.view_as(self._weight)
        if factor_rate:
            pull = self._values - self._weight.masked_fill(self._clamped, 0.0)
            pull = pull.mul_(slope).sum((2, 3), keepdim=True).sum_to_size(self._factor.shape)
            self._factor.sub_(pull.sign_(), alpha=factor_rate).clamp_(*_FACTORS)
        self._shift.sub_((slope * self._scale).sign_(), alpha=rate).clamp_(-0.5, 0.5)

    def quantized(self) -> QuantTensor:
        """What the format would store of the weight as it is now."""
        import torch

        grid, start = self._grid, self._start
        parameters = grid.rescaled(start.parameters, self._factor.flatten(1))
        scale, offset = self._real(parameters)
        inverse = _inverse(scale)
        places = self._places(inverse, -offset * inverse)
        places = places.clamp_(self._levels.lowest, self._levels.highest)
        codes = self._levels.code(places, start.codes.dtype)
        codes = torch.where(scale == 0, start.codes.view_as(codes), codes).view(start.shape)
        return QuantTensor(grid=grid, codes=codes, parameters=parameters)

    def _places(self, inverse: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Whole places with the offsets as they are, not clamped; a new tensor."""
        places = self._levels.place((self._weight * inverse).add_(base))
        return places.add_(self._shift).round_()

    def _real(self, parameters: Parameters) -> tuple[torch.Tensor, torch.Tensor]:
        scale, offset, _ = _spread(self._grid, parameters, self._start.shape, self._run)
        return scale.view_as(self._scale), offset.view_as(self._offset)


def _spread(
    grid: Grid, parameters: Parameters, shape: tuple[int, ...], every: int = 1
) -> tuple[torch.Tensor, torch.Tensor, Levels]:
    """Scale and offset of each ``every``-th column: (rows, columns / every); and the levels."""
    import torch

    found = [grid.column(parameters, index) for index in range(0, shape[1], every)]
    rows = shape[0]
    scale = torch.stack([column.scale[:rows].expand(rows) for column in found], dim=1)
    offset = torch.stack([column.offset[:rows].expand(rows) for column in found], dim=1)
    return scale, offset, Levels.of(found[0])


def _run(scale: torch.Tensor, offset: torch.Tensor, columns: int) -> int:
    """The most neighbours, dividing ``columns``, that share scale and offset everywhere."""
    for run in sorted(range(1, columns + 1), reverse=True):
        if columns % run:
            continue
        if all(_constant(each.view(len(each), -1, run)) for each in (scale, offset)):
            return run
    return 1


def _constant(runs: torch.Tensor) -> bool:
    return bool((runs == runs[..., :1]).all())


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale; 0 where that is 0: there all codes are worth the same."""
    import torch

    return torch.where(scale == 0, 0.0, 1.0 / scale)
