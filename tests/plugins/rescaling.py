"""Folds for the tests of transforms, small and with the outliers that transforms are for."""

from __future__ import annotations

import torch

from qconv.grids import UniformGrid
from qconv.plugin import Consumer, Fold
from qconv.statistics import Statistics, StatisticsSum

INT4 = UniformGrid(bits=4, symmetric=True, group_size=16)
INT8 = UniformGrid(bits=8, symmetric=True, group_size="channel")


def inputs(columns: int = 32, rows: int = 256, seed: int = 0) -> torch.Tensor:
    """(rows, columns) float32: two channels thirty times as large as the others."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x[:, [3, columns - 2]] *= 30.0
    return x


def statistics(x: torch.Tensor | None = None, *, gram: bool = True) -> Statistics:
    x = inputs() if x is None else x
    total = StatisticsSum(x.shape[1], gram=gram)
    total.add(x)
    return total.total()


def weight(rows: int = 48, columns: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1


def consumer(name="q_proj", grid=INT4, activation=None, **given) -> Consumer:
    return Consumer(
        name=name,
        weight=given.get("weight", weight()),
        grid=grid,
        activation=activation,
        statistics=given.get("statistics", statistics()),
    )


def fold(*consumers: Consumer, **given) -> Fold:
    consumers = consumers or (consumer(),)
    columns = consumers[0].weight.shape[1]
    channels = given.get("channels", columns)
    return Fold(
        block="model.layers.0",
        producer="norm",
        kind=given.get("kind", "norm"),
        producer_weight=torch.ones(channels),
        producer_grid=given.get("producer_grid"),
        channels=channels,
        channel_of=given.get("channel_of", torch.arange(columns)),
        consumers=consumers,
    )


def output_error(given: Fold, scales: torch.Tensor | None) -> float:
    """Squared error of all consumers' outputs over the tokens, by their Gram matrices."""
    s = torch.ones(given.channels) if scales is None else scales
    columns, total = s[given.channel_of], 0.0
    for each in given.consumers:
        if each.grid is None or each.statistics is None:
            continue
        importance = each.statistics.importance / columns.square()
        rounded = each.grid.decode(*each.grid.quantize(each.weight * columns, importance))
        E = (rounded / columns - each.weight).double()
        total += float(((E @ each.statistics.gram_sum.double()) * E).sum())
    return total


def snapshot(given: Fold) -> list[torch.Tensor]:
    """Copies of every tensor of a fold, to see that none is modified."""
    tensors = [given.producer_weight, given.channel_of]
    for each in given.consumers:
        known = [] if each.statistics is None else each.statistics.tensors().values()
        tensors += [each.weight, *known]
    return [tensor.clone() for tensor in tensors]


def unchanged(given: Fold, before: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, snapshot(given), before))


def usable(scales: torch.Tensor) -> bool:
    """float32, positive, finite, and within what float16 weights and norms survive."""
    return scales.dtype == torch.float32 and bool(
        ((scales >= 2**-8) & (scales <= 2**8) & torch.isfinite(scales)).all()
    )
