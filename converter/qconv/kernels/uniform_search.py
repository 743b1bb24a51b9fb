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

from .jit import inlined, kernel
from .uniform import RUN, arrays
from .uniform_plain import (
    ASYMMETRIC,
    DTYPES,
    HIGH,
    INV,
    KINDS,
    LANES,
    LOW,
    MAX,
    MIN,
    ROWS,
    SCALE,
    STEP_ZERO,
    clamped,
    plain,
    prepare,
    rounded,
    span,
    stored,
)

__all__ = ["Search", "fit"]

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)

#: Rows of the scratch array beyond those of the plain fit, one value per lane: what :func:`_sums`
#: and :func:`_error` give, the plain fit, and the best so far.
_DOT, _SQUARE, _ERROR, _PLAIN, _PLAIN_ZERO, _PLAIN_ERROR = range(ROWS, ROWS + 6)
_RAW, _ZERO_POINT, _REFINED, _SCORE, _BASE, _BASE_ZERO = range(ROWS + 6, ROWS + 12)
_ROWS = ROWS + 12


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
def _sums(tile, importance, by_magnitude, t):
    """``sum h x q`` and ``sum h q^2`` of every lane.

    Two loops, each short enough to be unrolled: only then are lanes computed side by side.
    """
    for lane in range(LANES):
        t[_DOT, lane] = _ZERO
        t[_SQUARE, lane] = _ZERO
    for first in range(0, len(tile), RUN):
        if by_magnitude:
            for lane in range(LANES):
                dot = _ZERO
                square = _ZERO
                for i in range(RUN):
                    x = tile[first + i, lane]
                    q = rounded(clamped(x * t[INV, lane], t[LOW, lane], t[HIGH, lane]))
                    hq = (x * x) * q
                    dot += hq * x
                    square += hq * q
                t[_DOT, lane] += dot
                t[_SQUARE, lane] += square
        else:
            for lane in range(LANES):
                dot = _ZERO
                square = _ZERO
                for i in range(RUN):
                    x = tile[first + i, lane]
                    q = rounded(clamped(x * t[INV, lane], t[LOW, lane], t[HIGH, lane]))
                    hq = importance[first + i] * q
                    dot += hq * x
                    square += hq * q
                t[_DOT, lane] += dot
                t[_SQUARE, lane] += square


@inlined
def _errors(tile, importance, by_magnitude, t):
    """``sum h (x - s q)^2`` of every lane."""
    for lane in range(LANES):
        t[_ERROR, lane] = _ZERO
    for first in range(0, len(tile), RUN):
        if by_magnitude:
            for lane in range(LANES):
                error = _ZERO
                for i in range(RUN):
                    x = tile[first + i, lane]
                    q = rounded(clamped(x * t[INV, lane], t[LOW, lane], t[HIGH, lane]))
                    e = x - t[SCALE, lane] * q
                    error += ((x * x) * e) * e
                t[_ERROR, lane] += error
        else:
            for lane in range(LANES):
                error = _ZERO
                for i in range(RUN):
                    x = tile[first + i, lane]
                    q = rounded(clamped(x * t[INV, lane], t[LOW, lane], t[HIGH, lane]))
                    e = x - t[SCALE, lane] * q
                    error += (importance[first + i] * e) * e
                t[_ERROR, lane] += error


@inlined
def _ends(tile, t):
    """The lowest and highest weight of every lane; zeros of the padding change no fit."""
    for lane in range(LANES):
        t[MIN, lane] = tile[0, lane]
        t[MAX, lane] = tile[0, lane]
    for first in range(0, len(tile), RUN):
        for lane in range(LANES):
            low = t[MIN, lane]
            high = t[MAX, lane]
            for i in range(RUN):
                x = tile[first + i, lane]
                low = min(low, x)
                high = max(high, x)
            t[MIN, lane] = low
            t[MAX, lane] = high


@inlined
def _begun(t):
    """The plain fit is the best so far."""
    for lane in range(LANES):
        t[_PLAIN, lane] = t[SCALE, lane]
        t[_PLAIN_ZERO, lane] = t[STEP_ZERO, lane]
        t[_RAW, lane] = t[SCALE, lane]
        t[_REFINED, lane] = t[SCALE, lane]
        t[_ZERO_POINT, lane] = t[STEP_ZERO, lane]
        t[_SCORE, lane] = _ZERO


@inlined
def _consider(tile, importance, by_magnitude, lowest, highest, dtype, t):
    """Score the candidate, and keep it where it is better than the best so far."""
    prepare(lowest, highest, t)
    _sums(tile, importance, by_magnitude, t)
    for lane in range(LANES):
        refined = t[_DOT, lane] / t[_SQUARE, lane]
        score = t[_DOT, lane] * refined
        wins = score > t[_SCORE, lane]  # False for NaN
        kept = stored(refined, dtype)
        t[_SCORE, lane] = score if wins else t[_SCORE, lane]
        t[_RAW, lane] = t[SCALE, lane] if wins else t[_RAW, lane]
        t[_REFINED, lane] = kept if wins else t[_REFINED, lane]
        t[_ZERO_POINT, lane] = t[STEP_ZERO, lane] if wins else t[_ZERO_POINT, lane]


@inlined
def _around(base, ratio, shift, lowest, highest, dtype, t):
    """A candidate near a scale and zero-point set aside."""
    for lane in range(LANES):
        t[SCALE, lane] = stored(t[base, lane] * ratio, dtype)
        t[STEP_ZERO, lane] = clamped(t[_BASE_ZERO, lane] + shift, lowest, highest)


@inlined
def _set_aside(source, t):
    """Make the best so far what the next candidates are near to."""
    for lane in range(LANES):
        t[_BASE, lane] = t[source, lane]
        t[_BASE_ZERO, lane] = t[_ZERO_POINT, lane]


@inlined
def _candidate(i, kind, lowest, highest, dtype, ratios, fine, t):
    """The i-th candidate: parts of the range, then near the best, then what that gives."""
    coarse = len(ratios)
    shifts = 2 if kind == ASYMMETRIC else 0
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
    if i < coarse and kind == ASYMMETRIC:
        span(part, ratios[i, 1], lowest, highest, dtype, t)
    else:
        _around(_BASE, part, shift, lowest, highest, dtype, t)


@inlined
def _searched(tile, importance, by_magnitude, kind, lowest, highest, dtype, ratios, fine, t):
    """From the plain fit to the best, in ``_PLAIN`` and ``_PLAIN_ZERO``."""
    for lane in range(LANES):
        t[_BASE, lane] = t[_PLAIN, lane]
        t[_BASE_ZERO, lane] = t[_PLAIN_ZERO, lane]
    for i in range(len(ratios) + (5 if kind == ASYMMETRIC else 3)):
        _candidate(i, kind, lowest, highest, dtype, ratios, fine, t)
        _consider(tile, importance, by_magnitude, lowest, highest, dtype, t)
    for best in range(2):
        for lane in range(LANES):
            t[SCALE, lane] = t[_REFINED, lane] if best else t[_PLAIN, lane]
            t[STEP_ZERO, lane] = t[_ZERO_POINT, lane] if best else t[_PLAIN_ZERO, lane]
        prepare(lowest, highest, t)
        _errors(tile, importance, by_magnitude, t)
        for lane in range(LANES):
            wins = (best == 0) | (t[_ERROR, lane] < t[_PLAIN_ERROR, lane])
            t[_PLAIN, lane] = t[SCALE, lane] if wins else t[_PLAIN, lane]
            t[_PLAIN_ZERO, lane] = t[STEP_ZERO, lane] if wins else t[_PLAIN_ZERO, lane]
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
    t = np.empty((_ROWS, LANES), np.float32)
    tile = np.zeros((padded, LANES), np.float32)
    for start in range(0, rows, LANES):
        lanes = min(LANES, rows - start)
        for group in range(groups):
            _load(weight, start, group * size, lanes, size, tile)
            _ends(tile, t)
            plain(kind, lowest, highest, dtype, t)
            _begun(t)
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
        KINDS[search.kind],
        np.float32(search.lowest),
        np.float32(search.highest),
        DTYPES[search.scale_dtype],
        np.array(search.ratios, np.float32).reshape(-1, 2),
        np.array([1.0 - search.fine, 1.0 + search.fine], np.float32),
        *arrays(scale, zero),
    )
    return scale, zero
