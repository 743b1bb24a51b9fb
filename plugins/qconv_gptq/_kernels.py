"""The innermost loop of GPTQ: columns rounded one after another, each taking up the others' errors.

All arrays are transposed, ``(columns, rows)``, so that the inner loops run over rows; a row's sums
run over columns in order, one lane each. No fastmath: the result does not depend on the machine.
"""

from __future__ import annotations

import numpy as np

from qconv.jit import inner, kernel

#: Rows handled together: a column of a tile is eight vectors wide, and 64 columns of a tile fit the
#: first-level cache.
_LANES = 64

#: Adding and subtracting 1.5 * 2**23 rounds a float32 below 2**22 in magnitude, half to even.
_MAGIC = np.float32(12582912.0)


@inner
def _take_up(wanted, error, start, lanes, factor, column):
    """Subtract from ``wanted`` what the errors of the columns before it ask for."""
    for before in range(column):
        e = error[before, start : start + lanes]
        u = factor[before, column]
        for lane in range(lanes):
            wanted[lane] -= e[lane] * u


@kernel
def round_even_steps(
    scale, inverse, offset, lowest, highest, target, goal, run, factor, d, codes, error, loss
):
    """Round onto ``scale * code + offset``; arguments as in ``_rounding.Batch``."""
    columns, rows = target.shape
    for start in range(0, rows, _LANES):
        lanes = min(_LANES, rows - start)
        wanted = np.empty(_LANES, np.float32)
        for column in range(columns):
            goals = goal[column, start : start + lanes]
            for lane in range(lanes):
                wanted[lane] = goals[lane]
            _take_up(wanted, error, start, lanes, factor, column)
            s = scale[run[column], start : start + lanes]
            inv = inverse[run[column], start : start + lanes]
            o = offset[run[column], start : start + lanes]
            w = target[column, start : start + lanes]
            e = error[column, start : start + lanes]
            c = codes[column, start : start + lanes]
            total = loss[start : start + lanes]
            weight = d[column]
            for lane in range(lanes):
                step = min(max((wanted[lane] - o[lane]) * inv[lane], lowest), highest)
                step = (step + _MAGIC) - _MAGIC
                value = s[lane] * step + o[lane]
                c[lane] = np.int32(step)
                e[lane] = value - w[lane]
                miss = value - wanted[lane]
                total[lane] += weight * (miss * miss)


@kernel
def round_codebook(
    scale,
    inverse,
    offset,
    values,
    number,
    bounds,
    target,
    goal,
    run,
    factor,
    d,
    codes,
    error,
    loss,
):
    """Round onto ``scale * values[place] + offset``; arguments as in ``_steps.Book``."""
    columns, rows = target.shape
    for start in range(0, rows, _LANES):
        lanes = min(_LANES, rows - start)
        wanted = np.empty(_LANES, np.float32)
        steps = np.empty(_LANES, np.float32)
        place = np.empty(_LANES, np.int32)
        for column in range(columns):
            goals = goal[column, start : start + lanes]
            for lane in range(lanes):
                wanted[lane] = goals[lane]
            _take_up(wanted, error, start, lanes, factor, column)
            s = scale[run[column], start : start + lanes]
            inv = inverse[run[column], start : start + lanes]
            o = offset[run[column], start : start + lanes]
            for lane in range(lanes):
                steps[lane] = (wanted[lane] - o[lane]) * inv[lane]
                place[lane] = 0
            half = np.int32((len(bounds) + 1) // 2)
            while half > 0:
                for lane in range(lanes):
                    above = steps[lane] > bounds[place[lane] + half - 1]
                    place[lane] += half if above else 0
                half = np.int32(half // 2)
            w = target[column, start : start + lanes]
            e = error[column, start : start + lanes]
            c = codes[column, start : start + lanes]
            total = loss[start : start + lanes]
            weight = d[column]
            for lane in range(lanes):
                value = s[lane] * values[place[lane]] + o[lane]
                c[lane] = number[place[lane]]
                e[lane] = value - w[lane]
                miss = value - wanted[lane]
                total[lane] += weight * (miss * miss)
