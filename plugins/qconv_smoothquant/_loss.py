"""What integer arithmetic costs after a rescaling, on input rows that calibration kept.

``|| Qx(X / s) Q(W s)^T - X W^T ||^2``: ``Q`` is the weight's own grid, ``Qx`` the grid of its input
as the runtime has it, per token or static. An input that the format leaves alone is not rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qconv.grids import ActivationGrid, Grid
    from qconv.plugin import Consumer, Fold
    from qconv.statistics import Statistics

#: Rows of a weight that candidates are judged by. The error is a sum over rows; 256 of them tell
#: strengths apart (a test holds the choice within 5 % of the best by all rows).
_ROWS = 256


class Loss:
    """The cost of a fold's consumers as a function of the scale of every channel.

    Consumers that stay float cost nothing, nor do those that no token came through.
    Peak memory: four times the kept rows of one consumer.
    """

    def __init__(self, fold: Fold) -> None:
        self._channel_of = fold.channel_of
        self._products = [part for each in fold.consumers if (part := _product(each))]

    @property
    def empty(self) -> bool:
        """True when nothing is known of any consumer."""
        return not self._products

    def __call__(self, s: torch.Tensor) -> float:
        """The cost under scales ``s``: (channels,) float32."""
        columns = s[self._channel_of.to(s.device)]
        return sum(each.cost(columns) for each in self._products)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Product:
    """A linear layer on the rows that calibration kept of its input.

    weight: (kept rows, in) float32
    exact: (sample rows, kept rows) float32, what the float layer gives
    share: tokens over sample rows, times all rows of the weight over those kept
    """

    weight: torch.Tensor
    grid: Grid
    activation: ActivationGrid | None
    statistics: Statistics
    exact: torch.Tensor
    share: float

    def cost(self, s: torch.Tensor) -> float:
        """s: (in,) float32."""
        import torch

        x, low, high = (
            each / s for each in (self.statistics.sample, self.statistics.low, self.statistics.high)
        )
        importance = self.statistics.importance / s.square()
        if self.activation is not None:
            static = None if self.activation.dynamic else self.activation.fit_range(low, high)
            x = self.activation.fake_quantize(x, static)
        codes, parameters = self.grid.quantize(self.weight * s, importance)
        error = x @ self.grid.decode(codes, parameters).t() - self.exact
        return self.share * float(error.square().sum(dtype=torch.float64))


def _product(consumer: Consumer) -> _Product | None:
    grid, statistics = consumer.grid, consumer.statistics
    if grid is None or statistics is None or not len(statistics.sample):
        return None
    statistics = statistics.to(consumer.weight.device)
    kept = _spread(consumer.weight) if grid.rows_independent else consumer.weight
    return _Product(
        weight=kept,
        grid=grid,
        activation=consumer.activation,
        statistics=statistics,
        exact=statistics.sample @ kept.t(),
        share=statistics.tokens / len(statistics.sample) * (len(consumer.weight) / len(kept)),
    )


def _spread(weight: torch.Tensor) -> torch.Tensor:
    """At most ``_ROWS`` rows, evenly spaced."""
    import torch

    if len(weight) <= _ROWS:
        return weight
    place = torch.arange(_ROWS, device=weight.device) * len(weight) // _ROWS
    return weight[place]
