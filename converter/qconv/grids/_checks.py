"""What every grid checks alike: its options, and the weight and importance it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from qconv.errors import UnsupportedGrid, UsageError

if TYPE_CHECKING:
    import torch

_Made = TypeVar("_Made")

#: Beyond what any block reaches (65504 times 128 times 32 in Q6_K is 2.7e8), and small enough that
#: the squares a search adds up stay finite, so that it is told by its place when its scale is not.
_LARGEST = 1e15


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


def check_weight(weight: torch.Tensor) -> float:
    """The sum of the weight's squares, infinite where it overflows; one pass, no copy.

    Raises:
        UnsupportedGrid: it is not 2-D float32, or a value is not finite.
    """
    import torch

    if weight.dtype != torch.float32 or weight.ndim != 2:
        raise UnsupportedGrid(
            f"weight is {weight.ndim}-D {weight.dtype}; grids work on 2-D float32: "
            "reshape it and call .float() first"
        )
    flat = weight.detach().reshape(-1)
    squares = float(torch.dot(flat, flat))
    if not math.isfinite(squares):
        _refuse_non_finite(weight)
    return squares


def widened(weight: torch.Tensor) -> torch.Tensor:
    """Weights in a half dtype in float32; others as they are."""
    import torch

    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight


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


def relative_importance(weight: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    """Importance divided by its largest value, so that no weighted sum overflows: (in,) float32.

    Raises:
        UnsupportedGrid: as :func:`check_importance`.
    """
    if importance is None:
        return weight.new_ones(weight.shape[1])
    largest = check_importance(importance, weight.shape[1])
    importance = importance.detach()
    # Not by a Python number: on CUDA, torch multiplies with the inverse of one.
    return importance / importance.new_tensor(largest) if largest else importance


def _refuse_non_finite(weight: torch.Tensor) -> None:
    import torch

    bad = (~torch.isfinite(weight)).nonzero()
    if not len(bad):
        return
    row, column = bad[0].tolist()
    raise UnsupportedGrid(
        f"weight has {len(bad)} values that are not finite, the first in row {row}, "
        f"column {column}: {float(weight[row, column])}; no grid holds them: "
        "repair the checkpoint or skip the tensor"
    )


def refuse_huge(weight: torch.Tensor, squares: float) -> None:
    """Raise UnsupportedGrid for values no float16 scale reaches, before a search squares them.

    A search that weighs squared errors would settle on zero where they overflow, silently.

    squares: their sum, as :func:`check_weight` gives it
    """
    if squares <= _LARGEST * _LARGEST:
        return
    largest = float(weight.abs().max())
    if largest > _LARGEST:
        raise UnsupportedGrid(
            f"weight has values up to {largest:.4g}; blocks with float16 scales hold no more than "
            f"{_LARGEST:.0g}: repair the checkpoint or keep the tensor in bfloat16"
        )
