"""The search for the scales of a codebook grid, compiled: blocks of one row each.

The same float32 operations, in the same order, as the reference in torch,
:func:`qconv.grids._codebook_fit.searched_reference`, which says what is searched; so both give the
same bits. As in :mod:`.uniform_search`, 64 rows are fitted side by side, one lane each, their
weights transposed in a tile that stays in the nearest cache over all candidates. No fastmath.
"""

from __future__ import annotations

import numpy as np
import torch

from .codebook import level
from .jit import inlined, kernel
from .uniform import RUN, arrays

__all__ = ["fit"]

#: Rows side by side.
_LANES = 64

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)

#: The smallest scale that is divided by; bitsandbytes' own.
_FLOOR = np.float32(1e-38)

#: Rows of the scratch array, one value per lane: what :func:`_sums` and :func:`_errors` take and
#: give, and the best so far.
_SCALE, _INV, _RUN_DOT, _RUN_SQUARE, _DOT, _SQUARE, _PLAIN, _RAW, _BEST, _SCORE, _ERROR = range(11)


# --- in numba -------------------------------------------------------------------------------------


@inlined
def _sums(tile, importance, levels, bounds, t):
    """``sum h x q`` and ``sum h q^2`` of every lane."""
    for lane in range(_LANES):
        t[_INV, lane] = _ONE / max(t[_SCALE, lane], _FLOOR)
        t[_DOT, lane] = _ZERO
        t[_SQUARE, lane] = _ZERO
    for first in range(0, len(tile), RUN):
        for lane in range(_LANES):
            t[_RUN_DOT, lane] = _ZERO
            t[_RUN_SQUARE, lane] = _ZERO
        for column in range(first, first + RUN):
            h = importance[column]
            for lane in range(_LANES):
                x = tile[column, lane]
                q = level(x * t[_INV, lane], levels, bounds)
                hq = h * q
                t[_RUN_DOT, lane] += hq * x
                t[_RUN_SQUARE, lane] += hq * q
        for lane in range(_LANES):
            t[_DOT, lane] += t[_RUN_DOT, lane]
            t[_SQUARE, lane] += t[_RUN_SQUARE, lane]


@inlined
def _errors(tile, importance, levels, bounds, t):
    """``sum h (x - s q)^2`` of every lane, in ``_DOT``."""
    for lane in range(_LANES):
        t[_INV, lane] = _ONE / max(t[_SCALE, lane], _FLOOR)
        t[_DOT, lane] = _ZERO
    for first in range(0, len(tile), RUN):
        for lane in range(_LANES):
            t[_RUN_DOT, lane] = _ZERO
        for column in range(first, first + RUN):
            h = importance[column]
            for lane in range(_LANES):
                x = tile[column, lane]
                e = x - t[_SCALE, lane] * level(x * t[_INV, lane], levels, bounds)
                t[_RUN_DOT, lane] += (h * e) * e
        for lane in range(_LANES):
            t[_DOT, lane] += t[_RUN_DOT, lane]


@inlined
def _largest(tile, t):
    """The largest magnitude of every lane, as the scale to start from."""
    for lane in range(_LANES):
        t[_PLAIN, lane] = _ZERO
    for column in range(len(tile)):
        for lane in range(_LANES):
            x = tile[column, lane]
            t[_PLAIN, lane] = max(t[_PLAIN, lane], abs(x))
    for lane in range(_LANES):
        t[_RAW, lane] = t[_PLAIN, lane]
        t[_BEST, lane] = t[_PLAIN, lane]
        t[_SCORE, lane] = _ZERO


@inlined
def _candidate(i, ratios, fine, t):
    """The i-th candidate: parts of the largest magnitude, near the best, then the best."""
    coarse = len(ratios)
    if i == coarse:
        for lane in range(_LANES):
            t[_ERROR, lane] = t[_RAW, lane]
    for lane in range(_LANES):
        if i < coarse:
            t[_SCALE, lane] = t[_PLAIN, lane] * ratios[i]
        elif i < coarse + 2:
            t[_SCALE, lane] = t[_ERROR, lane] * fine[i - coarse]
        else:
            t[_SCALE, lane] = t[_BEST, lane]


@inlined
def _searched(tile, importance, levels, bounds, ratios, fine, t):
    """From the plain scale to the best, in ``_PLAIN``."""
    for i in range(len(ratios) + 3):
        _candidate(i, ratios, fine, t)
        _sums(tile, importance, levels, bounds, t)
        for lane in range(_LANES):
            refined = t[_DOT, lane] / t[_SQUARE, lane]
            score = t[_DOT, lane] * refined
            wins = score > t[_SCORE, lane]  # False for NaN
            t[_SCORE, lane] = score if wins else t[_SCORE, lane]
            t[_RAW, lane] = t[_SCALE, lane] if wins else t[_RAW, lane]
            t[_BEST, lane] = refined if wins else t[_BEST, lane]
    for best in range(2):
        for lane in range(_LANES):
            t[_SCALE, lane] = t[_BEST, lane] if best else t[_PLAIN, lane]
        _errors(tile, importance, levels, bounds, t)
        for lane in range(_LANES):
            wins = (best == 0) | (t[_DOT, lane] < t[_ERROR, lane])
            t[_PLAIN, lane] = t[_SCALE, lane] if wins else t[_PLAIN, lane]
            t[_ERROR, lane] = t[_DOT, lane]


@kernel
def _fit(weight, importance, levels, bounds, ratios, fine, scale):
    rows, columns = weight.shape
    blocks, padded = importance.shape
    size = columns // blocks
    t = np.empty((11, _LANES), np.float32)
    tile = np.zeros((padded, _LANES), np.float32)
    for start in range(0, rows, _LANES):
        lanes = min(_LANES, rows - start)
        for block in range(blocks):
            for lane in range(lanes):
                for i in range(size):
                    tile[i, lane] = weight[start + lane, block * size + i]
            _largest(tile, t)
            _searched(tile, importance[block], levels, bounds, ratios, fine, t)
            for lane in range(lanes):
                scale[start + lane, block] = t[_PLAIN, lane]


# --- called with tensors --------------------------------------------------------------------------


def fit(
    weight: torch.Tensor,
    importance: torch.Tensor,
    size: int,
    levels: torch.Tensor,
    bounds: torch.Tensor,
    ratios: tuple[float, ...],
    fine: float,
) -> torch.Tensor:
    """The scale of every block of ``size`` columns: (rows, blocks) float32.

    weight: (rows, in) float32, contiguous, on the CPU
    importance: (in,) float32, at most 1
    levels: (16,) float32 and bounds: (15,) float32, both ascending
    ratios: parts of the largest magnitude to try
    fine: how far finer candidates are from the best one, as a part of it
    """
    blocks = weight.shape[1] // size
    padded = torch.zeros((blocks, -(-size // RUN) * RUN))
    padded[:, :size] = importance.view(blocks, size)
    scale = weight.new_empty((len(weight), blocks))
    _fit(
        *arrays(weight, padded),
        tuple(np.float32(level) for level in levels.tolist()),
        tuple(np.float32(bound) for bound in bounds.tolist()),
        np.array(ratios, np.float32),
        np.array([1.0 - fine, 1.0 + fine], np.float32),
        *arrays(scale),
    )
    return scale
