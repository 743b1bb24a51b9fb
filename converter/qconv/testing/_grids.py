"""Checks a grid: its description, what it stores, and that rounding finds the nearest value."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar

from ._failed import check_stored, equal, require, sample_importance, sample_weight

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from qconv.grids import ColumnGrid, Grid, Parameters

_ROWS = 6

Result = TypeVar("Result")


def check_grid(grid: Grid, in_features: int = 512) -> None:
    """Check a grid on a weight of 6 rows.

    in_features: a width that suits the grid

    Raises:
        ConformanceError: inputs are modified, the layout is not kept, results differ from call to
            call, decoded values are not those of ``column``, or not the nearest ones.
    """
    what, shape = f"grid {grid.name}", (_ROWS, in_features)
    grid.check_shape(shape)
    require(in_features % grid.columns(in_features) == 0, f"{what}: columns() must divide the row")
    require(grid.bits_per_weight(shape) > 0, f"{what}: bits_per_weight must be positive")
    _check_spec(what, grid)
    weight = sample_weight(*shape)
    for importance in (None, sample_importance(in_features)):
        parameters = _unmodified(what, "fit", grid.fit, weight, importance)
        codes = grid.round(weight, parameters)
        check_stored(f"{what}: round", grid, shape, codes, parameters)
        require(
            equal(codes, grid.round(weight, grid.fit(weight, importance))),
            f"{what}: a second call on equal inputs gives other codes",
        )
        check_stored(
            f"{what}: quantize",
            grid,
            shape,
            *_unmodified(what, "quantize", grid.quantize, weight, importance),
        )
        _check_values(what, grid, weight, codes, parameters)


def _check_spec(what: str, grid: Grid) -> None:
    spec = dict(grid.spec())
    require(
        json.loads(json.dumps(spec)) == spec, f"{what}: spec() must survive JSON, but is {spec!r}"
    )


def _unmodified(
    what: str,
    name: str,
    function: Callable[[torch.Tensor, torch.Tensor | None], Result],
    weight: torch.Tensor,
    importance: torch.Tensor | None,
) -> Result:
    own = weight.clone()
    own_importance = None if importance is None else importance.clone()
    result = function(own, own_importance)
    require(equal(own, weight), f"{what}: {name} modified the weight")
    if importance is not None and own_importance is not None:
        require(equal(own_importance, importance), f"{what}: {name} modified the importance")
    return result


def _check_values(
    what: str, grid: Grid, weight: torch.Tensor, codes: torch.Tensor, parameters: Parameters
) -> None:
    import torch

    kept = codes.clone()
    decoded = grid.decode(codes, parameters)
    require(equal(codes, kept), f"{what}: decode modified the codes")
    require(
        decoded.dtype == torch.float32 and decoded.shape == weight.shape,
        f"{what}: decode must give float32 of the weight's shape, not {decoded.dtype}",
    )
    step = max(1, grid.columns(weight.shape[1]) // 3)
    for index in range(0, weight.shape[1], step):
        values = _values_of(grid.column(parameters, index))[: len(weight)]  # (out, codes)
        error = (decoded[:, index] - weight[:, index]).abs()
        nearest = (values - weight[:, index, None]).abs().amin(dim=1)
        slack = 1e-6 * values.abs().amax(dim=1)  # float32 arithmetic in another order
        require(
            (error <= nearest + slack).all(),
            f"{what}: column {index}: decode(round(w)) is not the nearest value of column({index})",
        )


def _values_of(column: ColumnGrid) -> torch.Tensor:
    """Every value a column's codes may mean: (out, codes) float32."""
    import torch

    codes = torch.arange(column.lowest, column.highest + 1)
    values = codes.float() if column.codebook is None else column.codebook[codes]
    decoded: torch.Tensor = column.scale[:, None] * values + column.offset[:, None]
    return decoded
