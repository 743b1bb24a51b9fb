"""What rounding costs after a rescaling, by the Gram matrices alone.

With ``s`` folded into a weight's columns and out of its input, the layer computes with
``W' = Q(W s) / s``; its output is off by ``(W' - W) x``, whose square summed over the calibration
tokens is ``tr((W' - W) G (W' - W)^T)`` with ``G = X^T X``. No forward pass is needed, and ``Q`` is
the target's own grid, fitted as the rounder will fit it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qconv.grids import Grid
    from qconv.plugin import Consumer, Fold
    from qconv.statistics import Statistics


def is_judged(consumer: Consumer) -> bool:
    """Whether rounding costs a consumer anything we know of: it is rounded, and tokens came."""
    known = consumer.statistics
    return consumer.grid is not None and known is not None and known.tokens > 0


class Objective:
    """The cost of a fold's consumers as a function of the scale of every channel.

    Sums, not means, over tokens: an expert counts as much as tokens go through it.
    Peak memory: four times the kept rows of the consumers that share an input.

    fold: its consumers are all judged (:func:`is_judged`)
    rows: how many rows of the consumers of one input to judge by, evenly spaced; None: all
    """

    def __init__(self, fold: Fold, rows: int | None) -> None:
        self._channel_of = fold.channel_of
        self._inputs = tuple(_joined(each, rows) for each in _by_input(fold.consumers))

    def __call__(self, s: torch.Tensor) -> float:
        """The cost under scales ``s``: (channels,) float32."""
        columns = s[self._channel_of.to(s.device)]
        return sum(each.cost(columns) for each in self._inputs)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Input:
    """Rows of the weights that share an input and a grid.

    weight: (rows, in) float32
    gram: (in, in) float32, sum over tokens
    importance: (in,) float32
    share: all rows over those kept
    """

    weight: torch.Tensor
    grid: Grid
    gram: torch.Tensor
    importance: torch.Tensor
    share: float

    def cost(self, s: torch.Tensor) -> float:
        """s: (in,) float32."""
        import torch

        codes, parameters = self.grid.quantize(self.weight * s, self.importance / s.square())
        E = self.grid.decode(codes, parameters) / s - self.weight
        return self.share * float(((E @ self.gram) * E).sum(dtype=torch.float64))


def _by_input(consumers: Sequence[Consumer]) -> list[list[Consumer]]:
    """The consumers, those that can be judged as one matrix together."""
    inputs: list[list[Consumer]] = []
    for each in consumers:
        for known in inputs:
            if _alike(known[0], each):
                known.append(each)
                break
        else:
            inputs.append([each])
    return inputs


def _alike(first: Consumer, other: Consumer) -> bool:
    if first.grid is None or first.statistics is None or other.statistics is None:
        return False
    return (
        first.grid == other.grid
        and first.grid.rows_independent
        and (first.statistics is other.statistics or first.statistics.same(other.statistics))
    )


def _joined(consumers: Sequence[Consumer], rows: int | None) -> _Input:
    import torch

    grid, statistics = consumers[0].grid, consumers[0].statistics
    if grid is None or statistics is None:
        raise ValueError("consumers without a grid or statistics are not judged")
    weight = torch.cat([each.weight for each in consumers])
    kept = weight if rows is None or not grid.rows_independent else _spread(weight, rows)
    statistics = statistics.to(weight.device)
    return _Input(
        weight=kept,
        grid=grid,
        gram=_gram_sum(statistics),
        importance=statistics.importance,
        share=len(weight) / len(kept),
    )


def _gram_sum(statistics: Statistics) -> torch.Tensor:
    # The property says what is missing, and what to do; the sum itself needs no copy.
    return statistics.gram if statistics.gram_sum is None else statistics.gram_sum


def _spread(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """At most ``rows`` rows, evenly spaced."""
    import torch

    if len(weight) <= rows:
        return weight
    place = torch.arange(rows, device=weight.device) * len(weight) // rows
    return weight[place]
