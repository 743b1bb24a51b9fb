"""The search for scales and zero-points of a uniform grid, compiled: groups of one row each.

The same float32 operations, in the same order, as the reference in torch,
:func:`qconv.grids._uniform_fit.fit_rows_reference`, which says what is searched and why; so both
give the same bits. Here 64 rows are fitted side by side, one lane each: their weights lie
transposed in a tile that stays in the nearest cache over all candidates, and nothing of a candidate
reaches memory. Sums are in runs of :data:`uniform.RUN` columns, as in :mod:`.uniform`. No fastmath.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .half import half_value
from .jit import inlined, kernel
from .uniform import RUN, arrays

__all__ = ["Search", "fit"]

#: Rows side by side: a tile of 64 columns is 16 KiB, half a first-level cache. Measured: 32 rows
#: are slower by an eighth.
_LANES = 64

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)

#: Adding and subtracting 1.5 * 2**23 rounds a float32 below 2**22 in magnitude, half to even.
_MAGIC = np.float32(12582912.0)

#: Rows of the scratch array, one value per lane: ends of the weights, what :func:`_sums` and
#: :func:`_error` take and give, and the best so far.
_MIN, _MAX, _SCALE, _INV, _LOW, _HIGH, _STEP_ZERO, _DOT, _SQUARE, _ERROR = range(10)
_PLAIN, _PLAIN_ZERO, _PLAIN_ERROR, _RAW, _ZERO_POINT, _REFINED, _SCORE, _BASE, _BASE_ZERO = range(
    10, 19
)
_ROWS = 19

#: Kinds of grid.
_NARROW, _SYMMETRIC, _ASYMMETRIC = 0, 1, 2
_KINDS = {"narrow": _NARROW, "symmetric": _SYMMETRIC, "asymmetric": _ASYMMETRIC}

#: Dtypes of stored scales.
_HALF, _BRAIN, _SINGLE = 0, 1, 2
_DTYPES = {"float16": _HALF, "bfloat16": _BRAIN, "float32": _SINGLE}
_SMALLEST_HALF, _LARGEST_HALF = np.float32(2.0**-24), np.float32(65504.0)
_SMALLEST, _LARGEST = np.float32(2.0**-126), np.float32(np.finfo(np.float32).max)
_LARGEST_BRAIN = np.float32(3.3895313892515355e38)
_ROUND_BRAIN, _KEPT_BRAIN = np.uint32(0x7FFF), np.uint32(0xFFFF0000)
_SIGN, _MAGNITUDE = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
_SIXTEEN, _BIT = np.uint32(16), np.uint32(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is searched.

    kind: ``narrow`` (symmetric, positive scales), ``symmetric`` or ``asymmetric``
    lowest, highest: inclusive range of the codes
    scale_dtype: torch dtype name of stored scales
    ratios: what part of the low and of the high end candidates span, or twice what part their
        scale is of the plain one; empty for the plain fit
    fine: how far finer candidates are from the best one's scale, as a part of it
    by_magnitude: an error counts by the square of the weight, and importance is all ones
    """

    kind: str
    lowest: int
    highest: int
    scale_dtype: str
    ratios: tuple[tuple[float, float], ...]
    fine: float
    by_magnitude: bool


# --- in numba -------------------------------------------------------------------------------------


@inlined
def _rounded(value):
    return (value + _MAGIC) - _MAGIC


@inlined
def _clamped(value, lowest, highest):
    return min(max(value, lowest), highest)


@inlined
def _stored(scale, dtype):
    """``_uniform_fit.stored_scale``, in float32. NaN gives anything but loses by its score."""
    bits = np.float32(scale).view(np.uint32)
    magnitude = np.uint32(bits & _MAGNITUDE).view(np.float32)
    if dtype == _HALF:
        magnitude = half_value(_clamped(magnitude, _SMALLEST_HALF, _LARGEST_HALF))
    elif dtype == _BRAIN:
        wide = np.float32(_clamped(magnitude, _SMALLEST, _LARGEST_BRAIN)).view(np.uint32)
        odd = np.uint32(np.uint32(wide >> _SIXTEEN) & _BIT)
        wide = np.uint32(np.uint32(np.uint32(wide + _ROUND_BRAIN) + odd) & _KEPT_BRAIN)
        magnitude = np.uint32(wide).view(np.float32)
    else:
        magnitude = _clamped(magnitude, _SMALLEST, _LARGEST)
    sign = np.uint32(bits & _SIGN)
    return np.uint32(np.float32(magnitude).view(np.uint32) | sign).view(np.float32)


@inlined
def _sums(tile, importance, by_magnitude, t):
    """``sum h x q`` and ``sum h q^2`` of every lane.

    Two loops, each short enough to be unrolled: only then are lanes computed side by side.
    """
    for lane in range(_LANES):
        t[_DOT, lane] = _ZERO
        t[_SQUARE, lane] = _ZERO
    for first in range(0, len(tile), RUN):
        if by_magnitude:
            for lane in range(_LANES):
                dot = _ZERO
                square = _ZERO
                for i in range(RUN):
                    x = tile[first + i, lane]
                    q = _rounded(_clamped(x * t[_INV, lane], t[_LOW, lane], t[_HIGH, lane]))
                    hq = (x * x) * q
                    dot += hq * x
                    square += hq * q
                t[_DOT, lane] += dot
                t[_SQUARE, lane] += square
        else:
            for lane in range(_LANES):
                dot = _ZERO
                square = _ZERO
                for i in range(RUN):
                    x = tile[first + i, lane]
                    q = _rounded(_clamped(x * t[_INV, lane], t[_LOW, lane], t[_HIGH, lane]))
                    hq = importance[first + i] * q
                    dot += hq * x
                    square += hq * q
                t[_DOT, lane] += dot
                t[_SQUARE, lane] += square


@inlined
def _errors(tile, importance, by_magnitude, t):
    """``sum h (x - s q)^2`` of every lane."""
    for lane in range(_LANES):
        t[_ERROR, lane] = _ZERO
    for first in range(0, len(tile), RUN):
        if by_magnitude:
            for lane in range(_LANES):
                error = _ZERO
                for i in range(RUN):
                    x = tile[first + i, lane]
                    q = _rounded(_clamped(x * t[_INV, lane], t[_LOW, lane], t[_HIGH, lane]))
                    e = x - t[_SCALE, lane] * q
                    error += ((x * x) * e) * e
                t[_ERROR, lane] += error
        else:
            for lane in range(_LANES):
                error = _ZERO
                for i in range(RUN):
                    x = tile[first + i, lane]
                    q = _rounded(_clamped(x * t[_INV, lane], t[_LOW, lane], t[_HIGH, lane]))
                    e = x - t[_SCALE, lane] * q
                    error += (importance[first + i] * e) * e
                t[_ERROR, lane] += error


@inlined
def _ends(tile, t):
    """The lowest and highest weight of every lane; zeros of the padding change no fit."""
    for lane in range(_LANES):
        t[_MIN, lane] = tile[0, lane]
        t[_MAX, lane] = tile[0, lane]
    for first in range(0, len(tile), RUN):
        for lane in range(_LANES):
            low = t[_MIN, lane]
            high = t[_MAX, lane]
            for i in range(RUN):
                x = tile[first + i, lane]
                low = min(low, x)
                high = max(high, x)
            t[_MIN, lane] = low
            t[_MAX, lane] = high


@inlined
def _prepare(lowest, highest, t):
    """What the sums need, from a candidate's scale and zero-point."""
    for lane in range(_LANES):
        t[_INV, lane] = _ONE / t[_SCALE, lane]
        t[_LOW, lane] = lowest - t[_STEP_ZERO, lane]
        t[_HIGH, lane] = highest - t[_STEP_ZERO, lane]


@inlined
def _span(low_ratio, high_ratio, lowest, highest, dtype, t):
    """A candidate that spans parts of the weights' ends, stretched to hold zero."""
    for lane in range(_LANES):
        low = min(t[_MIN, lane], _ZERO) * low_ratio
        high = max(t[_MAX, lane], _ZERO) * high_ratio
        scale = _stored(high / highest - low / highest, dtype)
        t[_SCALE, lane] = scale
        t[_STEP_ZERO, lane] = _clamped(_rounded(-low / scale), lowest, highest)


@inlined
def _plain(kind, lowest, highest, dtype, t):
    """The fit to the largest magnitude; scale 1 where all weights are zero."""
    if kind == _ASYMMETRIC:
        _span(_ONE, _ONE, lowest, highest, dtype, t)
    else:
        for lane in range(_LANES):
            low = t[_MIN, lane]
            high = t[_MAX, lane]
            end = high if high > -low else low
            scale = max(high, -low) / highest if kind == _NARROW else end / lowest
            t[_SCALE, lane] = _stored(scale, dtype)
            t[_STEP_ZERO, lane] = _ZERO
    for lane in range(_LANES):
        empty = (t[_MIN, lane] == _ZERO) & (t[_MAX, lane] == _ZERO)
        t[_SCALE, lane] = _ONE if empty else t[_SCALE, lane]
        t[_PLAIN, lane] = t[_SCALE, lane]
        t[_PLAIN_ZERO, lane] = t[_STEP_ZERO, lane]
        t[_RAW, lane] = t[_SCALE, lane]
        t[_REFINED, lane] = t[_SCALE, lane]
        t[_ZERO_POINT, lane] = t[_STEP_ZERO, lane]
        t[_SCORE, lane] = _ZERO


@inlined
def _consider(tile, importance, by_magnitude, lowest, highest, dtype, t):
    """Score the candidate, and keep it where it is better than the best so far."""
    _prepare(lowest, highest, t)
    _sums(tile, importance, by_magnitude, t)
    for lane in range(_LANES):
        refined = t[_DOT, lane] / t[_SQUARE, lane]
        score = t[_DOT, lane] * refined
        wins = score > t[_SCORE, lane]  # False for NaN
        stored = _stored(refined, dtype)
        t[_SCORE, lane] = score if wins else t[_SCORE, lane]
        t[_RAW, lane] = t[_SCALE, lane] if wins else t[_RAW, lane]
        t[_REFINED, lane] = stored if wins else t[_REFINED, lane]
        t[_ZERO_POINT, lane] = t[_STEP_ZERO, lane] if wins else t[_ZERO_POINT, lane]


@inlined
def _around(base, ratio, shift, lowest, highest, dtype, t):
    """A candidate near a scale and zero-point set aside."""
    for lane in range(_LANES):
        t[_SCALE, lane] = _stored(t[base, lane] * ratio, dtype)
        t[_STEP_ZERO, lane] = _clamped(t[_BASE_ZERO, lane] + shift, lowest, highest)


@inlined
def _set_aside(source, t):
    """Make the best so far what the next candidates are near to."""
    for lane in range(_LANES):
        t[_BASE, lane] = t[source, lane]
        t[_BASE_ZERO, lane] = t[_ZERO_POINT, lane]


@inlined
def _candidate(i, kind, lowest, highest, dtype, ratios, fine, t):
    """The i-th candidate: parts of the range, then near the best, then what that gives."""
    coarse = len(ratios)
    shifts = 2 if kind == _ASYMMETRIC else 0
    if i == coarse:
        _set_aside(_RAW, t)
    if i in {coarse + 2, coarse + 2 + shifts}:
        _set_aside(_REFINED, t)
    part = _ONE
    shift = _ZERO
    if i < coarse:
        part = ratios[i, 0]
    elif i < coarse + 2:
        part = fine[i - coarse]
    elif i < coarse + 2 + shifts:
        shift = np.float32(2 * (i - coarse - 2) - 1)
    if i < coarse and kind == _ASYMMETRIC:
        _span(part, ratios[i, 1], lowest, highest, dtype, t)
    else:
        _around(_BASE, part, shift, lowest, highest, dtype, t)


@inlined
def _searched(tile, importance, by_magnitude, kind, lowest, highest, dtype, ratios, fine, t):
    """From the plain fit to the best, in ``_PLAIN`` and ``_PLAIN_ZERO``."""
    for lane in range(_LANES):
        t[_BASE, lane] = t[_PLAIN, lane]
        t[_BASE_ZERO, lane] = t[_PLAIN_ZERO, lane]
    for i in range(len(ratios) + (5 if kind == _ASYMMETRIC else 3)):
        _candidate(i, kind, lowest, highest, dtype, ratios, fine, t)
        _consider(tile, importance, by_magnitude, lowest, highest, dtype, t)
    for best in range(2):
        for lane in range(_LANES):
            t[_SCALE, lane] = t[_REFINED, lane] if best else t[_PLAIN, lane]
            t[_STEP_ZERO, lane] = t[_ZERO_POINT, lane] if best else t[_PLAIN_ZERO, lane]
        _prepare(lowest, highest, t)
        _errors(tile, importance, by_magnitude, t)
        for lane in range(_LANES):
            wins = (best == 0) | (t[_ERROR, lane] < t[_PLAIN_ERROR, lane])
            t[_PLAIN, lane] = t[_SCALE, lane] if wins else t[_PLAIN, lane]
            t[_PLAIN_ZERO, lane] = t[_STEP_ZERO, lane] if wins else t[_PLAIN_ZERO, lane]
            t[_PLAIN_ERROR, lane] = t[_ERROR, lane]


@inlined
def _load(weight, row, column, lanes, size, tile):
    """Transpose a group of some rows into the tile; the rest of it is zero already."""
    for lane in range(lanes):
        for i in range(size):
            tile[i, lane] = weight[row + lane, column + i]


@kernel
def _fit(weight, importance, by_magnitude, kind, lowest, highest, dtype, ratios, fine, scale, zero):
    rows, columns = weight.shape
    groups, padded = importance.shape
    size = columns // groups
    t = np.empty((_ROWS, _LANES), np.float32)
    tile = np.zeros((padded, _LANES), np.float32)
    for start in range(0, rows, _LANES):
        lanes = min(_LANES, rows - start)
        for group in range(groups):
            _load(weight, start, group * size, lanes, size, tile)
            _ends(tile, t)
            _plain(kind, lowest, highest, dtype, t)
            if len(ratios):
                _searched(
                    tile, importance[group], by_magnitude,
                    kind, lowest, highest, dtype, ratios, fine, t,
                )  # fmt: skip
            for lane in range(lanes):
                scale[start + lane, group] = t[_PLAIN, lane]
                zero[start + lane, group] = t[_PLAIN_ZERO, lane]


# --- called with tensors --------------------------------------------------------------------------


def fit(
    weight: torch.Tensor, importance: torch.Tensor, groups: int, search: Search
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero-point of each of ``groups`` groups per row: two of (rows, groups) float32.

    weight: (rows, in) float32, on the CPU
    importance: (in,) float32, at most 1
    """
    size = weight.shape[1] // groups
    padded = torch.zeros((groups, -(-size // RUN) * RUN))
    padded[:, :size] = importance.view(groups, size)
    scale = weight.new_empty((len(weight), groups))
    zero = torch.empty_like(scale)
    _fit(
        *arrays(weight, padded),
        search.by_magnitude,
        _KINDS[search.kind],
        np.float32(search.lowest),
        np.float32(search.highest),
        _DTYPES[search.scale_dtype],
        np.array(search.ratios, np.float32).reshape(-1, 2),
        np.array([1.0 - search.fine, 1.0 + search.fine], np.float32),
        *arrays(scale, zero),
    )
    return scale, zero
