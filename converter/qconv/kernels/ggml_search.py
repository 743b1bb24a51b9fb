"""The scale searches of llama.cpp's quantizers, in its arithmetic, for 64 blocks side by side.

Source of the algorithms: https://github.com/ggml-org/llama.cpp, ``ggml/src/ggml-quants.c``. Bytes
agree with it because every lane (one block) does the same float32 operations in the same order:
sums run left to right over a block, no multiply-add is fused, and products associate as C does.
Lanes are independent, so the compiler may use whatever vector width there is.

Tiles are ``(n, LANES)`` float32: value ``i`` of block ``k`` at ``[first + i, k]``. Scratch rows
live in one array of constant shape, which is what lets LLVM prove that rows do not overlap.
"""

# Comparisons are C's, written out: numba's min and max widen integers, and treat NaN and -0 their
# own way. Flags go to compiled functions by position, as everything does.
# ruff: noqa: FURB136, FBT003

from __future__ import annotations

import numpy as np

from .jit import inner

LANES = 64

ZERO = np.float32(0)
ONE = np.float32(1)
#: Below this a block counts as all zero (ggml-quants.c: GROUP_MAX_EPS).
TINY = np.float32(1e-15)

# 1.5 * 2^23: adding it leaves the rounded integer in the low mantissa bits. Beyond 2^22 the result
# is meaningless, and where llama.cpp does not clamp first, its files depend on that result.
_MAGIC = np.float32(12582912)
_MANTISSA = np.int32(0x007FFFFF)
_MIDDLE = np.int32(0x00400000)
_NO_LIMIT = np.int32(-0x80000000)
_BYTE = np.int32(0xFF)
_ALL_BITS = np.int32(-1)


@inner
def nearest(value):
    """The nearest int32 of a float32, ties to even; defined garbage beyond 2^22."""
    return np.int32(np.int32(np.float32(value + _MAGIC).view(np.int32) & _MANTISSA) - _MIDDLE)


@inner
def level(value, lowest, highest):
    """``nearest`` clamped to an int32 range."""
    code = nearest(value)
    code = highest if code > highest else code
    return lowest if code < lowest else code


@inner
def _clamped_level(value, highest):
    """The nearest integer in 0..highest, as float32; NaN gives 0."""
    value = value if value > ZERO else ZERO
    value = value if value < highest else highest
    return np.float32(np.float32(value + _MAGIC) - _MAGIC)


#: Rows of an affine search's table, one value per lane: the range, the sums, the best so far.
_LO, _HI, _SW, _SX, _BEST, _INV, _SL, _SLL, _SXL, _S, _M = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
_ERR, _SCALE, _INV0, _LO0, _FLAT, _REFIT = 11, 12, 13, 14, 15, 16


@inner
def affine_search(
    x, w, first, n, highest, begin, step, steps, absolute, clamped, scale, minimum, codes
):
    """Scale and minimum for ``scale * code + minimum``; starts from the range, then refits.

    x, w: tiles, w being the weight of each squared (``absolute``: plain) error
    highest: int32, codes are 0..highest
    begin, step, steps: candidate s divides the range by ``highest + begin + step * s``
    clamped: candidates clamp before they round, which llama.cpp does only under importance; it
        matters where zero importances have let the range collapse
    scale, minimum: (LANES,) float32, written; minimum is negated, so it is not negative
    codes: tile of uint8, written
    """
    t = np.empty((17, LANES), np.float32)
    level_of = np.empty((32, LANES), np.float32)
    none = np.int32(0)
    top = np.float32(highest)

    _affine_range(x, w, first, n, highest, absolute, t)
    for s in range(steps + 1):
        divisor = np.float32(np.float32(begin + np.float32(step * np.float32(s))) + top)
        _affine_candidate(x, w, first, n, highest, divisor, absolute, clamped, t, level_of)
    for i in range(n):
        for k in range(LANES):
            v = t[_INV0, k] * (x[first + i, k] - t[_LO0, k])
            plain = level(v, none, highest)
            refit = clamped & (t[_REFIT, k] != ZERO)
            codes[first + i, k] = np.int32(_clamped_level(v, top)) if refit else plain
    for k in range(LANES):
        scale[k] = t[_SCALE, k]
        minimum[k] = -t[_LO, k]


@inner
def _affine_range(x, w, first, n, highest, absolute, t):
    """The range of each lane, its sums, and the error of rounding straight onto it."""
    none = np.int32(0)
    top = np.float32(highest)
    for k in range(LANES):
        v = x[first, k]
        t[_LO, k] = v
        t[_HI, k] = v
        t[_SW, k] = w[first, k]
        t[_SX, k] = w[first, k] * v
    for i in range(1, n):
        for k in range(LANES):
            v = x[first + i, k]
            g = w[first + i, k]
            t[_LO, k] = v if v < t[_LO, k] else t[_LO, k]
            t[_HI, k] = v if v > t[_HI, k] else t[_HI, k]
            t[_SW, k] += g
            t[_SX, k] += g * v
    for k in range(LANES):
        lo = t[_LO, k]
        lo = ZERO if lo > ZERO else lo
        flat = t[_HI, k] == lo
        inverse = top / (t[_HI, k] - lo)
        t[_LO, k] = lo
        t[_LO0, k] = lo
        # A flat lane keeps scale 0 and error 0, which no candidate beats.
        t[_FLAT, k] = ONE if flat else ZERO
        t[_INV, k] = ZERO if flat else inverse
        t[_INV0, k] = t[_INV, k]
        t[_SCALE, k] = ZERO if flat else ONE / inverse
        t[_BEST, k] = ZERO
        t[_REFIT, k] = ZERO
    for i in range(n):
        for k in range(LANES):
            v = x[first + i, k]
            c = np.float32(level(t[_INV, k] * (v - t[_LO, k]), none, highest))
            d = t[_SCALE, k] * c + t[_LO, k] - v
            t[_BEST, k] += w[first + i, k] * (abs(d) if absolute else d * d)


@inner
def _affine_candidate(x, w, first, n, highest, divisor, absolute, clamped, t, level_of):
    """Round on a range cut into ``divisor`` steps, refit by least squares, keep what is better."""
    none = np.int32(0)
    top = np.float32(highest)
    for k in range(LANES):
        t[_INV, k] = divisor / (t[_HI, k] - t[_LO, k])
        t[_SL, k] = ZERO
        t[_SLL, k] = ZERO
        t[_SXL, k] = ZERO
        t[_ERR, k] = ZERO
    for i in range(n):
        for k in range(LANES):
            v = x[first + i, k]
            c = t[_INV, k] * (v - t[_LO, k])
            c = _clamped_level(c, top) if clamped else np.float32(level(c, none, highest))
            level_of[i, k] = c
            wc = w[first + i, k] * c
            t[_SL, k] += wc
            t[_SLL, k] += wc * c
            t[_SXL, k] += wc * v
    for k in range(LANES):
        det = t[_SW, k] * t[_SLL, k] - t[_SL, k] * t[_SL, k]
        fit = (t[_SW, k] * t[_SXL, k] - t[_SX, k] * t[_SL, k]) / det
        low = (t[_SLL, k] * t[_SX, k] - t[_SL, k] * t[_SXL, k]) / det
        above = low > ZERO
        t[_S, k] = t[_SXL, k] / t[_SLL, k] if above else fit
        t[_M, k] = ZERO if above else low
        # A singular fit cannot win: its error is worse than any.
        t[_ERR, k] = ZERO if det > ZERO else np.float32(np.inf)
    for i in range(n):
        for k in range(LANES):
            d = t[_S, k] * level_of[i, k] + t[_M, k] - x[first + i, k]
            t[_ERR, k] += w[first + i, k] * (abs(d) if absolute else d * d)
    for k in range(LANES):
        better = (t[_ERR, k] < t[_BEST, k]) & (t[_FLAT, k] == ZERO)
        t[_BEST, k] = t[_ERR, k] if better else t[_BEST, k]
        t[_SCALE, k] = t[_S, k] if better else t[_SCALE, k]
        t[_INV0, k] = t[_INV, k] if better else t[_INV0, k]
        t[_LO0, k] = t[_LO, k] if better else t[_LO0, k]
        t[_LO, k] = t[_M, k] if better else t[_LO, k]
        t[_REFIT, k] = ONE if better else t[_REFIT, k]


@inner
def _peak(x, first, n, t, MAX, AMAX):
    """Write each lane's value of largest magnitude (the first of equals) and that magnitude."""
    for k in range(LANES):
        t[MAX, k] = ZERO
        t[AMAX, k] = ZERO
    for i in range(n):
        for k in range(LANES):
            v = x[first + i, k]
            bigger = abs(v) > t[AMAX, k]
            t[AMAX, k] = abs(v) if bigger else t[AMAX, k]
            t[MAX, k] = v if bigger else t[MAX, k]


@inner
def symmetric_search(x, w, first, n, half, scale, codes):
    """Scale for ``scale * (code - half)``, trying 19 ways to map the peak.

    half: int32, codes are 0..2 * half - 1; an all-zero block gets scale 0 and codes 0
    scale: (LANES,) float32, written
    codes: tile of uint8, written
    """
    MAX, AMAX, INV, INV0, SXL, SLL, SCALE, BEST = 0, 1, 2, 3, 4, 5, 6, 7
    t = np.empty((8, LANES), np.float32)
    lowest = np.int32(-half)
    highest = np.int32(half - np.int32(1))
    top = np.float32(half)
    _peak(x, first, n, t, MAX, AMAX)

    for attempt in range(19):
        # The plain mapping comes first, then -9..9 tenths of a step around it.
        tenths = attempt - 10 if attempt <= 9 else attempt - 9
        divisor = top
        if attempt > 0:
            divisor = np.float32(top + np.float32(np.float32(0.1) * np.float32(tenths)))
        for k in range(LANES):
            t[INV, k] = -divisor / t[MAX, k]
            t[SXL, k] = ZERO
            t[SLL, k] = ZERO
        for i in range(n):
            for k in range(LANES):
                v = x[first + i, k]
                g = w[first + i, k]
                c = np.float32(level(t[INV, k] * v, lowest, highest))
                t[SXL, k] += g * v * c
                t[SLL, k] += g * c * c
        if attempt == 0:
            for k in range(LANES):
                t[SCALE, k] = t[SXL, k] / t[SLL, k] if t[SLL, k] != ZERO else ZERO
                t[BEST, k] = t[SCALE, k] * t[SXL, k]
                t[INV0, k] = t[INV, k]
        else:
            for k in range(LANES):
                sxl = t[SXL, k]
                sll = t[SLL, k]
                better = (sll > ZERO) & (sxl * sxl > t[BEST, k] * sll)
                fit = sxl / sll
                t[SCALE, k] = fit if better else t[SCALE, k]
                t[BEST, k] = fit * sxl if better else t[BEST, k]
                t[INV0, k] = t[INV, k] if better else t[INV0, k]

    for i in range(n):
        for k in range(LANES):
            code = np.int32(level(t[INV0, k] * x[first + i, k], lowest, highest) + half)
            codes[first + i, k] = np.int32(0) if t[AMAX, k] < TINY else code
    for k in range(LANES):
        scale[k] = ZERO if t[AMAX, k] < TINY else t[SCALE, k]


@inner
def _descend(x, w, first, n, t, level_of, SXL, SLL, lowest, highest, kept_bits, before):
    """At most five sweeps that move single codes while the fit improves.

    kept_bits: int32 mask of what a stored code keeps (llama.cpp stores some in a byte)
    before: whether the sum of squares must be positive without the code, or with the new one
    """
    NX, NL, CODE, MOVED = 0, 1, 2, 3
    u = np.empty((4, LANES), np.float32)
    for _ in range(5):
        for k in range(LANES):
            u[MOVED, k] = ZERO
        for i in range(n):
            for k in range(LANES):
                v = x[first + i, k]
                g = w[first + i, k]
                old = level_of[i, k]
                sxl = t[SXL, k] - g * v * old
                sll = t[SLL, k] - g * old * old
                code = level(v * sll / sxl, lowest, highest)
                c = np.float32(code)
                open_ = (sxl > ZERO) & (c != old) & ((sll > ZERO) | (not before))
                sxl += g * v * c
                sll += g * c * c
                better = sxl * sxl * t[SLL, k] > t[SXL, k] * t[SXL, k] * sll
                move = open_ & better & ((sll > ZERO) | before)
                u[NX, k] = sxl if move else t[SXL, k]
                u[NL, k] = sll if move else t[SLL, k]
                u[CODE, k] = np.float32(np.int32(code & kept_bits)) if move else old
                u[MOVED, k] = ONE if move else u[MOVED, k]
            for k in range(LANES):
                t[SXL, k] = u[NX, k]
                t[SLL, k] = u[NL, k]
                level_of[i, k] = u[CODE, k]
        moved = False
        for k in range(LANES):
            moved |= u[MOVED, k] != ZERO
        if not moved:  # a lane that did not move in one sweep never moves again
            break


@inner
def descent_search(x, w, first, n, half, scale, codes):
    """Scale for ``scale * (code - half)`` by moving single codes; w must be the squares of x."""
    MAX, AMAX, INV, SXL, SLL = 0, 1, 2, 3, 4
    t = np.empty((5, LANES), np.float32)
    level_of = np.empty((32, LANES), np.float32)
    lowest = np.int32(-half)
    highest = np.int32(half - np.int32(1))
    _peak(x, first, n, t, MAX, AMAX)
    for k in range(LANES):
        t[INV, k] = np.float32(lowest) / t[MAX, k]
        t[SXL, k] = ZERO
        t[SLL, k] = ZERO
    for i in range(n):
        for k in range(LANES):
            v = x[first + i, k]
            g = w[first + i, k]
            c = np.float32(level(t[INV, k] * v, lowest, highest))
            level_of[i, k] = c
            t[SXL, k] += g * v * c
            t[SLL, k] += g * c * c
    _descend(x, w, first, n, t, level_of, SXL, SLL, lowest, highest, _ALL_BITS, False)
    for i in range(n):
        for k in range(LANES):
            code = np.int32(np.int32(level_of[i, k]) + half)
            codes[first + i, k] = np.int32(0) if t[AMAX, k] < TINY else code
    for k in range(LANES):
        fit = t[SXL, k] / t[SLL, k] if t[SLL, k] > ZERO else ZERO
        scale[k] = ZERO if t[AMAX, k] < TINY else fit


@inner
def positive_search(x, w, n, highest, scale, codes):
    """Scale for ``scale * code`` of values that are not negative: the sub-scales of a super-block.

    highest: int32, codes are 0..highest; codes are kept in a byte, wrapped, as llama.cpp does
    scale: (LANES,) float32, written
    codes: tile of int32, written
    """
    MAX, INV, SXL, SLL, BEST, ERR, TRY = 0, 1, 2, 3, 4, 5, 6
    t = np.empty((7, LANES), np.float32)
    level_of = np.empty((16, LANES), np.float32)
    top = np.float32(highest)
    for k in range(LANES):
        t[MAX, k] = ZERO
        t[BEST, k] = ZERO
        t[SXL, k] = ZERO
        t[SLL, k] = ZERO
    for i in range(n):
        for k in range(LANES):
            t[MAX, k] = x[i, k] if x[i, k] > t[MAX, k] else t[MAX, k]
    for k in range(LANES):
        t[INV, k] = top / t[MAX, k]
    for i in range(n):
        for k in range(LANES):
            c = np.float32(np.int32(nearest(t[INV, k] * x[i, k]) & _BYTE))
            d = x[i, k] - (ONE / t[INV, k]) * c
            t[BEST, k] += w[i, k] * d * d
    for s in range(-4, 5):
        if s == 0:
            continue
        divisor = np.float32(np.float32(np.float32(0.1) * np.float32(s)) + top)
        for k in range(LANES):
            t[TRY, k] = divisor / t[MAX, k]
            t[ERR, k] = ZERO
        for i in range(n):
            for k in range(LANES):
                c = np.float32(level(t[TRY, k] * x[i, k], _NO_LIMIT, highest))
                d = x[i, k] - (ONE / t[TRY, k]) * c
                t[ERR, k] += w[i, k] * d * d
        for k in range(LANES):
            better = t[ERR, k] < t[BEST, k]
            t[BEST, k] = t[ERR, k] if better else t[BEST, k]
            t[INV, k] = t[TRY, k] if better else t[INV, k]
    for i in range(n):
        for k in range(LANES):
            code = level(t[INV, k] * x[i, k], _NO_LIMIT, highest)
            c = np.float32(code)
            level_of[i, k] = np.float32(np.int32(code & _BYTE))
            t[SXL, k] += w[i, k] * x[i, k] * c
            t[SLL, k] += w[i, k] * c * c
    _descend(x, w, 0, n, t, level_of, SXL, SLL, _NO_LIMIT, highest, _BYTE, True)
    for i in range(n):
        for k in range(LANES):
            code = np.int32(level_of[i, k])
            codes[i, k] = np.int32(0) if t[MAX, k] < TINY else code
    for k in range(LANES):
        fit = t[SXL, k] / t[SLL, k] if t[SLL, k] > ZERO else ZERO
        scale[k] = ZERO if t[MAX, k] < TINY else fit
