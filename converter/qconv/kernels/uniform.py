"""The hot loops of the uniform grids: sums over groups for the fit, and the choice of codes.

Each loop has a plain torch reference beside it, which is also what runs on CUDA. Both give the same
bits, because both do the same float32 operations in the same order:

* a step is ``min(max(x * (1 / scale), lowest), highest)``, rounded half to even. Steps are codes
  less the zero-point, so that symmetric and asymmetric grids are one case;
* a sum over a group adds runs of :data:`RUN` columns from left to right, then the runs from left to
  right. Different rows lie in different lanes of the vector unit, so its width changes nothing, and
  torch needs ``RUN + columns / RUN`` additions of whole tensors instead of one per column.

For the sums, weights come transposed, ``(in, rows)``, so that the innermost loop runs over rows.
No fastmath: contraction to fused multiply-add would make the result depend on the machine.
"""

from __future__ import annotations

import numpy as np
import torch

from .jit import inner, kernel

__all__ = [
    "RUN",
    "arrays",
    "codes",
    "codes_reference",
    "dots",
    "dots_reference",
    "emphasis",
    "errors",
    "errors_reference",
    "sum_runs",
]

#: Columns summed in one go: near the square root of common group sizes.
RUN = 16

#: Rows summed together: the partial sums of 64 rows stay in the first-level cache.
_LANES = 64

#: Adding and subtracting 1.5 * 2**23 rounds a float32 below 2**22 in magnitude, half to even.
_MAGIC = np.float32(12582912.0)

_ZERO = np.float32(0.0)


# --- in numba -------------------------------------------------------------------------------------


@inner
def _step(x, inverse, lowest, highest):
    return (min(max(x * inverse, lowest), highest) + _MAGIC) - _MAGIC


@inner
def _weighed(importance, level, slope, x):
    return importance * (level + slope * (x * x))


@kernel
def _dots(weight, importance, level, slope, inverse, lowest, highest, dot, square):
    columns, rows = weight.shape
    groups = inverse.shape[0]
    size = columns // groups
    dots = np.empty(_LANES, np.float32)
    squares = np.empty(_LANES, np.float32)
    for group in range(groups):
        for start in range(0, rows, _LANES):
            lanes = min(_LANES, rows - start)
            inv = inverse[group, start : start + lanes]
            low = lowest[group, start : start + lanes]
            high = highest[group, start : start + lanes]
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
                        q = _step(x[lane], inv[lane], low[lane], high[lane])
                        hq = _weighed(h, level, slope, x[lane]) * q
                        dots[lane] += hq * x[lane]
                        squares[lane] += hq * q
                for lane in range(lanes):
                    total_dot[lane] += dots[lane]
                    total_square[lane] += squares[lane]


@kernel
def _errors(weight, importance, level, slope, scale, inverse, lowest, highest, error):
    columns, rows = weight.shape
    groups = inverse.shape[0]
    size = columns // groups
    errors = np.empty(_LANES, np.float32)
    for group in range(groups):
        for start in range(0, rows, _LANES):
            lanes = min(_LANES, rows - start)
            s = scale[group, start : start + lanes]
            inv = inverse[group, start : start + lanes]
            low = lowest[group, start : start + lanes]
            high = highest[group, start : start + lanes]
            total = error[group, start : start + lanes]
            total[:] = _ZERO
            for first in range(group * size, (group + 1) * size, RUN):
                errors[:] = _ZERO
                for column in range(first, min(first + RUN, (group + 1) * size)):
                    x = weight[column, start : start + lanes]
                    h = importance[column]
                    for lane in range(lanes):
                        q = _step(x[lane], inv[lane], low[lane], high[lane])
                        e = x[lane] - s[lane] * q
                        errors[lane] += (_weighed(h, level, slope, x[lane]) * e) * e
                for lane in range(lanes):
                    total[lane] += errors[lane]


@kernel
def _codes(weight, inverse, lowest, highest, zero, codes):
    rows, columns = weight.shape
    groups = inverse.shape[1]
    size = columns // groups
    for row in range(rows):
        for group in range(groups):
            inv = inverse[row, group]
            low = lowest[row, group]
            high = highest[row, group]
            z = zero[row, group]
            x = weight[row, group * size : (group + 1) * size]
            out = codes[row, group * size : (group + 1) * size]
            for i in range(size):
                out[i] = np.int32(_step(x[i], inv, low, high) + z)


# --- called with tensors --------------------------------------------------------------------------


def dots(
    weight: torch.Tensor,
    importance: torch.Tensor,
    inverse: torch.Tensor,
    lowest: torch.Tensor,
    highest: torch.Tensor,
    *,
    by_magnitude: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per group, ``sum h x q`` and ``sum h q^2``: their quotient is the least-squares scale.

    weight: (in, rows) float32, contiguous
    importance: (in,) float32
    inverse: (groups, rows) float32, 1 / scale
    lowest, highest: (groups, rows) float32, integers bounding the steps
    by_magnitude: ``h`` is the importance times ``x^2``
    returns: two of (groups, rows) float32
    """
    if weight.device.type != "cpu":
        return dots_reference(
            weight, importance, inverse, lowest, highest, by_magnitude=by_magnitude
        )
    dot, square = torch.empty_like(inverse), torch.empty_like(inverse)
    limits = arrays(inverse, lowest, highest, dot, square)
    _dots(*arrays(weight, importance), *emphasis(by_magnitude), *limits)
    return dot, square


def errors(
    weight: torch.Tensor,
    importance: torch.Tensor,
    scale: torch.Tensor,
    inverse: torch.Tensor,
    lowest: torch.Tensor,
    highest: torch.Tensor,
    *,
    by_magnitude: bool = False,
) -> torch.Tensor:
    """Per group, ``sum h (x - scale q)^2``: (groups, rows) float32, arguments as in dots."""
    if weight.device.type != "cpu":
        return errors_reference(
            weight, importance, scale, inverse, lowest, highest, by_magnitude=by_magnitude
        )
    error = torch.empty_like(inverse)
    limits = arrays(scale, inverse, lowest, highest, error)
    _errors(*arrays(weight, importance), *emphasis(by_magnitude), *limits)
    return error


def codes(
    weight: torch.Tensor,
    inverse: torch.Tensor,
    lowest: torch.Tensor,
    highest: torch.Tensor,
    zero: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The nearest step of every weight, plus the zero-point: (rows, in) int8 or uint8.

    weight: (rows, in) float32, contiguous
    inverse, lowest, highest, zero: (rows, groups) float32, contiguous
    """
    if weight.device.type != "cpu":
        return codes_reference(weight, inverse, lowest, highest, zero, dtype)
    out = torch.empty(weight.shape, dtype=dtype)
    _codes(*arrays(weight, inverse, lowest, highest, zero, out))
    return out


def emphasis(by_magnitude: bool) -> tuple[np.float32, np.float32]:  # noqa: FBT001 - of kernels
    """``level`` and ``slope`` of kernels: an error counts ``importance (level + slope x^2)``."""
    return (np.float32(0.0), np.float32(1.0)) if by_magnitude else (np.float32(1.0), _ZERO)


def arrays(*tensors: torch.Tensor) -> list[np.ndarray]:
    """Numpy views of tensors on the CPU, for kernels to take."""
    return [tensor.detach().numpy() for tensor in tensors]


# --- the same in torch ----------------------------------------------------------------------------


def dots_reference(
    weight: torch.Tensor,
    importance: torch.Tensor,
    inverse: torch.Tensor,
    lowest: torch.Tensor,
    highest: torch.Tensor,
    *,
    by_magnitude: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`dots` computes, in torch, on any device."""
    x = weight.view(inverse.shape[0], -1, inverse.shape[1])  # (groups, size, rows)
    h = importance.view(inverse.shape[0], -1, 1)
    h = h * (x * x) if by_magnitude else h
    q = _steps(x, inverse[:, None], lowest[:, None], highest[:, None])
    hq = h * q
    return sum_runs(hq * x), sum_runs(hq * q)


def errors_reference(
    weight: torch.Tensor,
    importance: torch.Tensor,
    scale: torch.Tensor,
    inverse: torch.Tensor,
    lowest: torch.Tensor,
    highest: torch.Tensor,
    *,
    by_magnitude: bool = False,
) -> torch.Tensor:
    """What :func:`errors` computes, in torch, on any device."""
    x = weight.view(inverse.shape[0], -1, inverse.shape[1])  # (groups, size, rows)
    h = importance.view(inverse.shape[0], -1, 1)
    h = h * (x * x) if by_magnitude else h
    q = _steps(x, inverse[:, None], lowest[:, None], highest[:, None])
    e = x - scale[:, None] * q
    return sum_runs((h * e) * e)


def codes_reference(
    weight: torch.Tensor,
    inverse: torch.Tensor,
    lowest: torch.Tensor,
    highest: torch.Tensor,
    zero: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """What :func:`codes` computes, in torch, on any device."""
    x = weight.view(inverse.shape[0], inverse.shape[1], -1)  # (rows, groups, size)
    q = _steps(x, inverse[..., None], lowest[..., None], highest[..., None])
    return (q + zero[..., None]).to(dtype).view(weight.shape)


def _steps(
    x: torch.Tensor, inverse: torch.Tensor, lowest: torch.Tensor, highest: torch.Tensor
) -> torch.Tensor:
    return torch.minimum(torch.maximum(x * inverse, lowest), highest).round()


def sum_runs(terms: torch.Tensor) -> torch.Tensor:
    """Sums over dimension 1 of (groups, size, rows), in the order the module docstring states."""
    groups, size, rows = terms.shape
    runs = -(-size // RUN)
    # Adding the zeros of the padding changes no sum.
    padded = torch.nn.functional.pad(terms, (0, 0, 0, runs * RUN - size))
    padded = padded.view(groups, runs, RUN, rows)
    partial = torch.zeros_like(padded[:, :, 0])
    for i in range(RUN):
        partial = partial + padded[:, :, i]
    total = torch.zeros_like(partial[:, 0])
    for i in range(runs):
        total = total + partial[:, i]
    return total
