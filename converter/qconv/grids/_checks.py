"""What every grid checks alike: its options, and the weight and importance it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from qconv.errors import UnsupportedGrid, UsageError

if TYPE_CHECKING:
    import torch

_Made = TypeVar("_Made")


def from_options(grid: type[_Made], title: str, options: str, spec: Mapping[str, Any]) -> _Made:
    """Make a grid from a spec without its family.

    title: what messages call the grid
    options: the names it takes, for messages

    Raises:
        UsageError: an option is missing, unknown or out of range.
    """
    given = {key: value for key, value in spec.items() if key != "family"}
    try:
        return grid(**given)
    except TypeError as error:
        raise UsageError(f"{title} {dict(spec)!r}: {error}; options are {options}") from None


def check_choice(title: str, option: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise UsageError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UsageError(f"{title}: {option} is {value!r}; choose {' or '.join(choices)}")


def check_matrix(shape: tuple[int, ...], name: str) -> None:
    """Raise UnsupportedGrid unless ``shape`` is 2-D and not empty."""
    if len(shape) != 2 or min(shape) < 1:
        raise UnsupportedGrid(
            f"tensor {name!r}: shape {tuple(shape)} is not (rows, columns), both at least 1; "
            "quantize linear weights only, copy this one"
        )


def check_weight(weight: torch.Tensor) -> None:
    """Raise UnsupportedGrid unless ``weight`` is 2-D float32 and finite: one pass, no copy."""
    import torch

    if weight.dtype != torch.float32 or weight.ndim != 2:
        raise UnsupportedGrid(
            f"weight is {weight.ndim}-D {weight.dtype}; grids work on 2-D float32: "
            "reshape it and call .float() first"
        )
    # A sum is the fastest pass, and not finite if a value is not; large values may overflow it too.
    if not math.isfinite(weight.detach().sum()) and not bool(torch.isfinite(weight).all()):
        _refuse_non_finite(weight)


def check_importance(importance: torch.Tensor, columns: int) -> float:
    """The largest importance.

    Raises:
        UnsupportedGrid: it is not (columns,) float32, or a value is negative or not finite.
    """
    import torch

    if tuple(importance.shape) != (columns,) or importance.dtype != torch.float32:
        raise UnsupportedGrid(
            f"importance is {tuple(importance.shape)} {importance.dtype}; "
            f"a weight with {columns} columns needs ({columns},) torch.float32"
        )
    low, high = torch.stack(torch.aminmax(importance.detach())).tolist()
    if not 0.0 <= low <= high < math.inf:
        raise UnsupportedGrid(
            f"importance ranges from {low} to {high}; it must be finite and not negative: "
            "repeat the calibration without the samples that overflow"
        )
    return float(high)


def _refuse_non_finite(weight: torch.Tensor) -> NoReturn:
    import torch

    bad = (~torch.isfinite(weight)).nonzero()
    row, column = bad[0].tolist()
    raise UnsupportedGrid(
        f"weight has {len(bad)} values that are not finite, the first in row {row}, "
        f"column {column}: {float(weight[row, column])}; no grid holds them: "
        "repair the checkpoint or skip the tensor"
    )
