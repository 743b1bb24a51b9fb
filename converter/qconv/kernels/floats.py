"""The hot loops of the float grids' search: sums over tiles of a row.

A row is cut into tiles of ``width`` columns, the last one shorter where it ends. As in
:mod:`.uniform`, each loop has a plain torch reference beside it, which is also what runs on CUDA;
both do the same float32 operations in the same order, sums in runs of :data:`uniform.RUN` columns.
A value is rounded to FP8 E4M3, ties to even, saturating, after it is multiplied with the inverse of
its scale. 64 rows lie side by side, one lane each, transposed. No fastmath.
"""

from __future__ import annotations

import numpy as np
import torch

from .jit import inlined, kernel
from .uniform import RUN, arrays, sum_runs

__all__ = ["errors", "errors_reference", "sums", "sums_reference"]

#: Rows side by side.
_LANES = 64

_ZERO = np.float32(0.0)
_LARGEST = np.float32(448.0)
#: Below this, values are 2**-9 apart; adding and subtracting 1.5 * 2**14 rounds to that.
_SMALLEST_NORMAL = np.float32(2.0**-6)
_SUBNORMAL_MAGIC = np.float32(1.5 * 2.0**14)
#: Of 23 bits of mantissa three are kept.
_DROPPED, _ONE = np.uint32(20), np.uint32(1)
_ROUND, _KEPT = np.uint32(0x7FFFF), np.uint32(0xFFF00000)

#: Rows of the scratch array, one value per lane.
_SCALE, _INV, _RUN_DOT, _RUN_SQUARE, _DOT, _SQUARE = range(6)


# --- in numba -------------------------------------------------------------------------------------


@inlined
def _rounded(value):
    """The nearest FP8 E4M3 value."""
    value = min(max(value, -_LARGEST), _LARGEST)
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> _DROPPED) & _ONE)
    bits = np.uint32(np.uint32(np.uint32(bits + _ROUND) + odd) & _KEPT)
    normal = np.uint32(bits).view(np.float32)
    subnormal = np.float32(np.float32(value + _SUBNORMAL_MAGIC) - _SUBNORMAL_MAGIC)
    return normal if abs(value) >= _SMALLEST_NORMAL else subnormal


@inlined
def _load(weight, start, lanes, first, size, tile):
    for lane in range(lanes):
        for i in range(size):
            tile[i, lane] = weight[start + lane, first + i]
    for i in range(size, len(tile)):
        for lane in range(_LANES):
            tile[i, lane] = _ZERO


@kernel
def _sums(weight, importance, inverse, width, dot, square):
    rows, columns = weight.shape
    candidates, _, tiles = inverse.shape
    padded = importance.shape[1]
    t = np.zeros((6, _LANES), np.float32)
    tile = np.zeros((padded, _LANES), np.float32)
    for start in range(0, rows, _LANES):
        lanes = min(_LANES, rows - start)
        for across in range(tiles):
            first = across * width
            _load(weight, start, lanes, first, min(width, columns - first), tile)
            for candidate in range(candidates):
                for lane in range(lanes):
                    t[_INV, lane] = inverse[candidate, start + lane, across]
                for lane in range(_LANES):
                    t[_DOT, lane] = _ZERO
                    t[_SQUARE, lane] = _ZERO
                for run in range(0, padded, RUN):
                    for lane in range(_LANES):
                        t[_RUN_DOT, lane] = _ZERO
                        t[_RUN_SQUARE, lane] = _ZERO
                    for column in range(run, run + RUN):
                        h = importance[across, column]
                        for lane in range(_LANES):
                            x = tile[column, lane]
                            q = _rounded(x * t[_INV, lane])
                            hq = h * q
                            t[_RUN_DOT, lane] += hq * x
                            t[_RUN_SQUARE, lane] += hq * q
                    for lane in range(_LANES):
                        t[_DOT, lane] += t[_RUN_DOT, lane]
                        t[_SQUARE, lane] += t[_RUN_SQUARE, lane]
                for lane in range(lanes):
                    dot[candidate, start + lane, across] = t[_DOT, lane]
                    square[candidate, start + lane, across] = t[_SQUARE, lane]


@kernel
def _errors(weight, importance, scale, inverse, width, error):
    rows, columns = weight.shape
    tiles = scale.shape[1]
    padded = importance.shape[1]
    t = np.zeros((6, _LANES), np.float32)
    tile = np.zeros((padded, _LANES), np.float32)
    for start in range(0, rows, _LANES):
        lanes = min(_LANES, rows - start)
        for across in range(tiles):
            first = across * width
            _load(weight, start, lanes, first, min(width, columns - first), tile)
            for lane in range(lanes):
                t[_SCALE, lane] = scale[start + lane, across]
                t[_INV, lane] = inverse[start + lane, across]
            for lane in range(_LANES):
                t[_DOT, lane] = _ZERO
            for run in range(0, padded, RUN):
                for lane in range(_LANES):
                    t[_RUN_DOT, lane] = _ZERO
                for column in range(run, run + RUN):
                    h = importance[across, column]
                    for lane in range(_LANES):
                        x = tile[column, lane]
                        e = x - t[_SCALE, lane] * _rounded(x * t[_INV, lane])
                        t[_RUN_DOT, lane] += (h * e) * e
                for lane in range(_LANES):
                    t[_DOT, lane] += t[_RUN_DOT, lane]
            for lane in range(lanes):
                error[start + lane, across] = t[_DOT, lane]


# --- called with tensors --------------------------------------------------------------------------


def sums(
    weight: torch.Tensor, importance: torch.Tensor, inverse: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per candidate, row and tile, ``sum h x q`` and ``sum h q^2``.

    weight: (rows, in) float32, contiguous
    importance: (in,) float32
    inverse: (candidates, rows, tiles) float32, 1 / scale, contiguous
    returns: two of (candidates, rows, tiles) float32
    """
    if weight.device.type != "cpu":
        return sums_reference(weight, importance, inverse, width)
    dot, square = torch.empty_like(inverse), torch.empty_like(inverse)
    _sums(*arrays(weight, _tiled(importance, width), inverse), width, *arrays(dot, square))
    return dot, square


def errors(
    weight: torch.Tensor, importance: torch.Tensor, scale: torch.Tensor, width: int
) -> torch.Tensor:
    """Per row and tile, ``sum h (x - scale q)^2``: shaped like ``scale``, (rows, tiles) float32."""
    if weight.device.type != "cpu":
        return errors_reference(weight, importance, scale, width)
    error = torch.empty_like(scale)
    _errors(*arrays(weight, _tiled(importance, width), scale, 1.0 / scale), width, *arrays(error))
    return error


def _tiled(importance: torch.Tensor, width: int) -> torch.Tensor:
    """(tiles, width), zeros where the last tile ends early, and to whole runs."""
    missing = -len(importance) % width
    tiles = torch.nn.functional.pad(importance, (0, missing)).view(-1, width)
    return torch.nn.functional.pad(tiles, (0, -width % RUN)).contiguous()


# --- the same in torch ----------------------------------------------------------------------------


def sums_reference(
    weight: torch.Tensor, importance: torch.Tensor, inverse: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`sums` computes, in torch, on any device."""
    x, h = _columns_first(weight, width), _columns_first(importance[None], width)
    dots, squares = [], []
    for each in inverse:
        q = _nearest(x * each.t()[:, None])
        hq = h * q
        dots.append(sum_runs(hq * x).t())
        squares.append(sum_runs(hq * q).t())
    return torch.stack(dots), torch.stack(squares)


def errors_reference(
    weight: torch.Tensor, importance: torch.Tensor, scale: torch.Tensor, width: int
) -> torch.Tensor:
    """What :func:`errors` computes, in torch, on any device."""
    x, h = _columns_first(weight, width), _columns_first(importance[None], width)
    e = x - scale.t()[:, None] * _nearest(x * (1.0 / scale).t()[:, None])
    return sum_runs((h * e) * e).t().contiguous()


def _columns_first(values: torch.Tensor, width: int) -> torch.Tensor:
    """(rows, in) as (tiles, width, rows), zeros where the last tile ends early."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % width))
    return padded.reshape(len(values), -1, width).permute(1, 2, 0)


def _nearest(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(-448.0, 448.0).to(torch.float8_e4m3fn).float()
