"""Checks a rounder on grids: what it must leave alone, and what it must return."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._failed import check_stored, equal, require, sample_statistics, sample_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from qconv.grids import Grid
    from qconv.plugin import Rounder
    from qconv.statistics import Statistics
    from qconv.tensors import QuantTensor

_SHAPE = (6, 512)  # 512 suits blocks of 32 and 256, and any group size that divides them


def check_rounder(
    rounder_class: Callable[[], Rounder], grids: Iterable[Grid], *, streams: bool = False
) -> None:
    """Check a rounder on every grid, with and without statistics.

    streams: as its MethodSpec says; rows must then come out the same in slabs as all at once

    Raises:
        ConformanceError: it changes its inputs, returns something else than the grid declares,
            gives other values the second time, or not what it says when it streams.
    """
    weight, statistics = sample_weight(*_SHAPE), sample_statistics(_SHAPE[1])
    for grid in grids:
        for given in (None, statistics):
            steered = "" if given is None else " with statistics"
            what = f"{getattr(rounder_class, '__name__', rounder_class)} on {grid.name}{steered}"
            _check_once(what, rounder_class, grid, weight, given)
            if streams and grid.rows_independent:
                _check_slabs(what, rounder_class, grid, weight, given)


def _check_once(
    what: str,
    rounder_class: Callable[[], Rounder],
    grid: Grid,
    weight: torch.Tensor,
    statistics: Statistics | None,
) -> None:
    import torch

    own = weight.clone()
    before = None if statistics is None else statistics.to("cpu", copy=True)
    result = rounder_class().quantize(own, grid, statistics)
    require(equal(own, weight), f"{what}: quantize modified the weight")
    if statistics is not None and before is not None:
        require(statistics.same(before), f"{what}: quantize modified the statistics")
    require(result.grid == grid, f"{what}: the result is on grid {result.grid!r}, not {grid!r}")
    check_stored(what, grid, _SHAPE, result.codes, result.parameters)
    values = result.dequantize()
    require(torch.isfinite(values).all(), f"{what}: the result holds values that are not finite")
    require(
        _distance(values, weight) < _distance(torch.zeros_like(weight), weight),
        f"{what}: the result is further from the weight than zeros are",
    )
    again = rounder_class().quantize(own, grid, statistics)
    require(_same(result, again), f"{what}: a second call on equal inputs gives other values")


def _check_slabs(
    what: str,
    rounder_class: Callable[[], Rounder],
    grid: Grid,
    weight: torch.Tensor,
    statistics: Statistics | None,
) -> None:
    import torch

    whole = rounder_class().quantize(weight, grid, statistics).dequantize()
    half = _SHAPE[0] // 2
    slabs = [
        rounder_class().quantize(slab.clone(), grid, statistics).dequantize()
        for slab in (weight[:half], weight[half:])
    ]
    require(
        equal(whole, torch.cat(slabs)),
        f"{what}: streams is True, but rows come out different in slabs than all at once",
    )


def _distance(values: torch.Tensor, weight: torch.Tensor) -> float:
    return float((values - weight).double().square().sum())


def _same(left: QuantTensor, right: QuantTensor) -> bool:
    same_parameters = all(
        equal(tensor, right.parameters[name]) for name, tensor in left.parameters.items()
    )
    return equal(left.codes, right.codes) and same_parameters
