"""Carries out transforms on a block: asks for scales and folds them in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qconv.errors import BrokenPlugin

if TYPE_CHECKING:
    import torch

    from qconv.grids import ActivationGrid, Grid
    from qconv.model import BlockFold, LinearPart, LinearRef
    from qconv.plugin import Consumer, Fold, Transform
    from qconv.statistics import Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """Where a source tensor will land in the target at hand."""

    grid: Grid | None = None
    activation: ActivationGrid | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockState:
    """A block between two steps of a chain. Nothing in it is modified; steps make new ones.

    parameters: of the block's module, float32 by path
    statistics: of the input of each linear weight, by source name
    changed: paths of parameters that transforms changed
    """

    name: str
    parameters: Mapping[str, torch.Tensor]
    statistics: Mapping[str, Statistics]
    changed: frozenset[str] = field(default=frozenset())


def transformed(
    state: BlockState,
    transform: Transform,
    folds: Sequence[BlockFold],
    linears: Sequence[LinearRef],
    landing: Mapping[str, Landing],
    *,
    executor: Executor,
) -> BlockState:
    """The block after one transform: every fold's scales chosen on ``state``, then all folded in.

    Raises:
        BrokenPlugin: the transform gives scales of the wrong shape, not positive or not finite.
    """
    from qconv.model import apply_folds

    views = [_view(state, fold, linears, landing) for fold in folds]
    chosen = list(executor.map(transform.scales, views))
    pairs = []
    for fold, view, scales in zip(folds, views, chosen, strict=True):
        if scales is None:
            continue
        _check_scales(type(transform).__name__, view, scales)
        if not bool((scales == 1).all()):
            pairs.append((fold, scales.float()))
    new = apply_folds(state.parameters, pairs)
    return BlockState(
        name=state.name,
        parameters={**state.parameters, **new},
        statistics=_divided(state.statistics, pairs, linears),
        changed=state.changed | frozenset(new),
    )


def _view(
    state: BlockState,
    fold: BlockFold,
    linears: Sequence[LinearRef],
    landing: Mapping[str, Landing],
) -> Fold:
    """The fold as a transform sees it."""
    import torch

    from qconv.plugin import Fold

    producer = state.parameters[fold.producer]
    if fold.expert is not None:
        producer = producer[fold.expert]
    rows = (producer.t() if fold.transposed else producer)[torch.tensor(fold.rows)]
    if fold.kind == "norm_plus_one":
        rows = 1 + rows
    parts = [
        consumer
        for part in fold.consumers
        for consumer in _consumers(state, part, linears, landing)
    ]
    owner = next(
        (
            ref.source
            for ref in linears
            if (ref.parameter, ref.expert) == (fold.producer, fold.expert)
            and ref.rows[0] <= fold.rows[0] < ref.rows[1]
        ),
        fold.producer,
    )
    return Fold(
        block=state.name,
        producer=owner,
        kind="linear" if fold.kind == "linear" else "norm",
        producer_weight=rows,
        producer_grid=landing.get(owner, Landing()).grid,
        channels=fold.channels,
        channel_of=torch.tensor(fold.channel_of, dtype=torch.int64),
        consumers=tuple(parts),
    )


def _consumers(
    state: BlockState,
    part: LinearPart,
    linears: Sequence[LinearRef],
    landing: Mapping[str, Landing],
) -> Iterable[Consumer]:
    """The source tensors, or their rows, that a consuming part of the block is made of."""
    from qconv.plugin import Consumer

    weight = state.parameters[part.parameter]
    if part.expert is not None:
        weight = weight[part.expert]
    if part.transposed:
        weight = weight.t()
    for ref in _refs(part, linears):
        start, stop = max(ref.rows[0], part.rows[0]), min(ref.rows[1], part.rows[1])
        where = landing.get(ref.source, Landing())
        yield Consumer(
            name=ref.source,
            weight=weight[start:stop],
            grid=where.grid,
            activation=where.activation,
            statistics=state.statistics.get(ref.source),
        )


def _refs(part: LinearPart, linears: Sequence[LinearRef]) -> list[LinearRef]:
    return [
        ref
        for ref in linears
        if (ref.parameter, ref.expert) == (part.parameter, part.expert)
        and ref.rows[0] < part.rows[1]
        and part.rows[0] < ref.rows[1]
    ]


def _check_scales(name: str, fold: Fold, scales: torch.Tensor) -> None:
    if tuple(scales.shape) != (fold.channels,):
        raise BrokenPlugin(
            f"plugin author: {name}.scales gave {tuple(scales.shape)} for {fold.block}, "
            f"{fold.producer}, which has {fold.channels} channels; give one scale per channel"
        )
    if not bool(scales.isfinite().all()) or not bool((scales > 0).all()):
        raise BrokenPlugin(
            f"plugin author: {name}.scales for {fold.block}, {fold.producer} are not all positive "
            "and finite; a channel that should stay takes scale 1"
        )


def _divided(
    statistics: Mapping[str, Statistics],
    pairs: Sequence[tuple[BlockFold, torch.Tensor]],
    linears: Sequence[LinearRef],
) -> dict[str, Statistics]:
    """Divide what consumers see; those that shared one input still share it."""
    import torch

    new = dict(statistics)
    for fold, scales in pairs:
        spread = scales[torch.tensor(fold.channel_of, device=scales.device)]
        divided: dict[int, Statistics] = {}
        names = {ref.source for part in fold.consumers for ref in _refs(part, linears)}
        for name in sorted(names):
            old = new.get(name)
            if old is not None:
                if id(old) not in divided:
                    divided[id(old)] = old.divided(spread.to(old.high.device))
                new[name] = divided[id(old)]
    return new
