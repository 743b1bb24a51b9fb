"""The hot loops of the codebook grids: sums over blocks for the fit, and the choice of codes.

As in :mod:`qconv.kernels.uniform`: each loop has a plain torch reference beside it, which also runs
on CUDA; both do the same float32 operations in the same order, sums in runs of :data:`uniform.RUN`
columns; weights come transposed, ``(in, rows)``, for the innermost loop to run over rows; no
fastmath.

A codebook is sorted here: ``levels``, 16 values in ascending order, and ``bounds``, the 15 values
between them. A value takes the level above a bound when it is greater than it.
"""

from __future__ import annotations

import numpy as np
import torch

from .jit import inner, kernel
from .uniform import RUN, arrays, sum_runs

__all__ = [
    "codes",
    "codes_reference",
    "dots",
    "dots_reference",
    "errors",
    "errors_reference",
]

#: Rows summed together: the partial sums of 64 rows stay in the first-level cache.
_LANES = 64

_ZERO = np.float32(0.0)


# --- in numba -------------------------------------------------------------------------------------


@inner
def _level(value, levels, bounds):
    """The level of a value."""
    found = levels[0]
    for i in range(15):
        found = levels[i + 1] if value > bounds[i] else found
    return found


@kernel
def _dots(weight, importance, inverse, levels, bounds, dot, square):
    columns, rows = weight.shape
    groups = inverse.shape[0]
    size = columns // groups
    dots = np.empty(_LANES, np.float32)
    squares = np.empty(_LANES, np.float32)
    for group in range(groups):
        for start in range(0, rows, _LANES):
            lanes = min(_LANES, rows - start)
            inv = inverse[group, start : start + lanes]
            total_dot = dot[group, start : start + lanes]
            total_square = square[group, start : start + lanes]
            total_dot[:] = _ZERO
            total_square[:] = _ZERO
            for first in range(group * size, (group + 1) * size, RUN):
                dots[:] = _ZERO
                squares[:] = _ZERO
                for column in range(first, min(first + RUN, (group + 1) * size)):
                    x = weight[column, start : start + lanes]
                    h = importance[column]
                    for lane in range(lanes):
                        q = _level(x[lane] * inv[lane], levels, bounds)
                        hq = h * q
                        dots[lane] += hq * x[lane]
                        squares[lane] += hq * q
                for lane in range(lanes):
                    total_dot[lane] += dots[lane]
                    total_square[lane] += squares[lane]


@kernel
def _errors(weight, importance, scale, inverse, levels, bounds, error):
    columns, rows = weight.shape
    groups = inverse.shape[0]
    size = columns // groups
    errors = np.empty(_LANES, np.float32)
    for group in range(groups):
        for start in range(0, rows, _LANES):
            lanes = min(_LANES, rows - start)
            s = scale[group, start : start + lanes]
            inv = inverse[group, start : start + lanes]
            total = error[group, start : start + lanes]
            total[:] = _ZERO
            for first in range(group * size, (group + 1) * size, RUN):
                errors[:] = _ZERO
                for column in range(first, min(first + RUN, (group + 1) * size)):
                    x = weight[column, start : start + lanes]
                    h = importance[column]
                    for lane in range(lanes):
                        q = _level(x[lane] * inv[lane], levels, bounds)
                        e = x[lane] - s[lane] * q
                        errors[lane] += (h * e) * e
                for lane in range(lanes):
                    total[lane] += errors[lane]


@kernel
def _codes(weight, inverse, bounds, order, codes):
    rows, columns = weight.shape
    groups = inverse.shape[1]
    size = columns // groups
    for row in range(rows):
        for group in range(groups):
            inv = inverse[row, group]
            x = weight[row, group * size : (group + 1) * size]
            out = codes[row, group * size : (group + 1) * size]
            for i in range(size):
                value = x[i] * inv
                place = np.int32(0)
                for k in range(15):
                    place += np.int32(value > bounds[k])
                out[i] = order[place]


# --- called with tensors --------------------------------------------------------------------------


def dots(
    weight: torch.Tensor,
    importance: torch.Tensor,
    inverse: torch.Tensor,
    levels: torch.Tensor,
    bounds: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per block, ``sum h x q`` and ``sum h q^2``: their quotient is the least-squares scale.

    weight: (in, rows) float32, contiguous
    importance: (in,) float32
    inverse: (blocks, rows) float32, 1 / scale
    levels: (16,) float32 and bounds: (15,) float32, both ascending
    returns: two of (blocks, rows) float32
    """
    if weight.device.type != "cpu":
        return dots_reference(weight, importance, inverse, levels, bounds)
    dot, square = torch.empty_like(inverse), torch.empty_like(inverse)
    _dots(*arrays(weight, importance, inverse, levels, bounds, dot, square))
    return dot, square


def errors(
    weight: torch.Tensor,
    importance: torch.Tensor,
    scale: torch.Tensor,
    inverse: torch.Tensor,
    levels: torch.Tensor,
    bounds: torch.Tensor,
) -> torch.Tensor:
    """Per block, ``sum h (x - scale q)^2``: (blocks, rows) float32, arguments as in dots."""
    if weight.device.type != "cpu":
        return errors_reference(weight, importance, scale, inverse, levels, bounds)
    error = torch.empty_like(inverse)
    _errors(*arrays(weight, importance, scale, inverse, levels, bounds, error))
    return error


def codes(
    weight: torch.Tensor, inverse: torch.Tensor, bounds: torch.Tensor, order: torch.Tensor
) -> torch.Tensor:
    """The code of the nearest level of every weight: (rows, in) uint8.

    weight: (rows, in) float32, contiguous
    inverse: (rows, blocks) float32, contiguous
    bounds: (15,) float32, ascending
    order: (16,) uint8, the code of every level
    """
    if weight.device.type != "cpu":
        return codes_reference(weight, inverse, bounds, order)
    out = torch.empty(weight.shape, dtype=torch.uint8)
    _codes(*arrays(weight, inverse, bounds, order, out))
    return out


# --- the same in torch ----------------------------------------------------------------------------


def dots_reference(
    weight: torch.Tensor,
    importance: torch.Tensor,
    inverse: torch.Tensor,
    levels: torch.Tensor,
    bounds: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`dots` computes, in torch, on any device."""
    x = weight.view(inverse.shape[0], -1, inverse.shape[1])  # (blocks, size, rows)
    h = importance.view(inverse.shape[0], -1, 1)
    q = levels[torch.bucketize(x * inverse[:, None], bounds)]
    hq = h * q
    return sum_runs(hq * x), sum_runs(hq * q)


def errors_reference(
    weight: torch.Tensor,
    importance: torch.Tensor,
    scale: torch.Tensor,
    inverse: torch.Tensor,
    levels: torch.Tensor,
    bounds: torch.Tensor,
) -> torch.Tensor:
    """What :func:`errors` computes, in torch, on any device."""
    x = weight.view(inverse.shape[0], -1, inverse.shape[1])  # (blocks, size, rows)
    h = importance.view(inverse.shape[0], -1, 1)
    q = levels[torch.bucketize(x * inverse[:, None], bounds)]
    e = x - scale[:, None] * q
    return sum_runs((h * e) * e)


def codes_reference(
    weight: torch.Tensor, inverse: torch.Tensor, bounds: torch.Tensor, order: torch.Tensor
) -> torch.Tensor:
    """What :func:`codes` computes, in torch, on any device."""
    x = weight.view(inverse.shape[0], inverse.shape[1], -1)  # (rows, blocks, size)
    return order[torch.bucketize(x * inverse[..., None], bounds)].view(weight.shape)
