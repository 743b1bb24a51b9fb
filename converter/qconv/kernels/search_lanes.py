"""Tiles of 64 sub-blocks side by side: loading, sums over codes, least squares, writing codes.

A tile holds 2048 weights, transposed so that neighbours in memory belong to different sub-blocks
("lanes"): value ``p`` of lane ``k`` of group ``g`` is at ``(g * length + p) * 64 + k``. Inner loops
run over lanes and vectorise; a sub-block's sums run over its values in order, one lane each, so
results depend neither on the vector width nor on where a sub-block lies in a tile.

Per-lane numbers live in one array of fields, ``STRIDE`` floats apart: distances that the compiler
knows are what lets it prove that fields do not overlap. A ``part`` is that array from a group's
first lane on. Everything is float32 and never contracted, so the torch reference agrees bit for
bit.
"""

from __future__ import annotations

import numpy as np

from .jit import inner

LANES = 64
TILE = 2048
STRIDE = 128  # two groups of lanes: sixteen sub-blocks of sixteen, times eight super-blocks

# Fields. NumPy integers: each plain one would have the functions it is given to compiled anew.
_FIELDS = STRIDE * np.arange(26, dtype=np.int64)
# Sums of the codes in work: w*q, w*q*q, w*q*x; and of the sub-block: w*x, w.
INVERSE, OFFSET, SUM_Q, SUM_QQ, SUM_QX, SUM_X, SUM_W, LOW, HIGH = _FIELDS[:9]
# The best so far: its value, its gain over all zeros, its sums.
SCALE, MINIMUM, GAIN, BEST_Q, BEST_QQ, BEST_QX = _FIELDS[9:15]
# Super-blocks, spread over their lanes, and the sub-scales under them.
SUPER_SCALE, SUPER_MINIMUM, SUB_SCALE, SUB_MINIMUM, SCORE = _FIELDS[15:20]
# A candidate for the best; six fields in the order of SCALE..BEST_QX.
NEXT = _FIELDS[20]
FIELDS = 26 * STRIDE

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
WORST = np.float32(-1e30)
#: Below this share of its terms, a determinant is rounding noise: all codes are alike.
SINGULAR = np.float32(1e-6)


@inner
def reciprocal(scale):
    """1 / scale, 0 for 0; divided first and chosen then, which vectorises."""
    inverse = ONE / scale
    return ZERO if scale == ZERO else inverse


@inner
def load(weight, owners, sub, length, tile):
    """Transpose 2048 weights into ``tile``.

    owners: super-blocks (or blocks) in a tile, a multiple of eight; sub: sub-blocks in each
    """
    step = sub * length
    for owner in range(0, owners, 8):
        for j in range(sub):
            source = weight[owner * step + j * length :]
            target = tile[(j >> 3) * length * LANES + (j & 7) * owners + owner :]
            for p in range(length):
                x = source[p:]
                lanes = target[p * LANES : p * LANES + 8]
                for i in range(8):
                    lanes[i] = x[i * step]


@inner
def load_next(weight, first, owners, sub, length, padded, tile):
    """Load the tile that starts at weight ``first``; zeros follow the last.

    padded: (2048,) zeros, written where the weights end
    """
    source = weight[first : first + TILE]
    if len(source) < TILE:
        for i in range(len(source)):
            padded[i] = source[i]
        source = padded
    load(source, owners, sub, length, tile)


@inner
def importance_of(importance, number):
    """The importance of a tile; None stays None."""
    if importance is None:
        return None
    return importance[number % len(importance)]


@inner
def from_value(importance, first):
    """A tile's importance from a value on; None stays None."""
    if importance is None:
        return None
    return importance[first:]


@inner
def round_values(weight, first, length, inverse, offset, lowest, highest, rounded):
    """Codes, still float32, of the ``length`` weights from ``first`` on."""
    x = weight[first : first + length]
    for p in range(length):
        rounded[p] = np.rint(min(max(x[p] * inverse + offset, lowest), highest))


@inner
def write_codes(rounded, count, codes):
    """Store codes. Not while rounding: loops over bytes step by 32, more than a sub-block may hold.

    Measured, against one loop for both: 1.5 times as fast for sub-blocks of 32, 2 times for 16.
    """
    for p in range(count):
        codes[p] = np.int32(rounded[p])


@inner
def clear(part, field, value):
    """Set a field of one group."""
    lanes = part[field : field + LANES]
    for k in range(LANES):
        lanes[k] = value


@inner
def _describe(x, low, high, total):
    return min(low, x), max(high, x), total + x


@inner
def describe(tile, importance, part, length, ceiling):
    """Range (its low end no higher than ``ceiling``), sum of w*x and sum of w."""
    for k in range(LANES):
        part[LOW + k] = ceiling
        part[HIGH + k] = tile[k]
        part[SUM_X + k] = ZERO
        part[SUM_W + k] = ZERO
    for p in range(0, length, 4):
        x = tile[p * LANES : (p + 4) * LANES]
        for k in range(LANES):
            low, high, total = part[LOW + k], part[HIGH + k], part[SUM_X + k]
            low, high, total = _describe(x[k], low, high, total)
            low, high, total = _describe(x[64 + k], low, high, total)
            low, high, total = _describe(x[128 + k], low, high, total)
            low, high, total = _describe(x[192 + k], low, high, total)
            part[LOW + k], part[HIGH + k], part[SUM_X + k] = low, high, total
    if importance is None:
        clear(part, SUM_W, np.float32(length))
    else:
        clear(part, SUM_X, ZERO)
        for p in range(length):
            x = tile[p * LANES : (p + 1) * LANES]
            w = importance[p * LANES : (p + 1) * LANES]
            for k in range(LANES):
                part[SUM_X + k] += w[k] * x[k]
                part[SUM_W + k] += w[k]


@inner
def _affine(x, inverse, offset, highest, q_, qq, qx):
    q = np.rint(min(max(x * inverse + offset, ZERO), highest))
    return q_ + q, qq + q * q, qx + q * x


@inner
def _affine_weighted(x, w, inverse, offset, highest, q_, qq, qx):
    q = np.rint(min(max(x * inverse + offset, ZERO), highest))
    wq = w * q
    return q_ + wq, qq + wq * q, qx + wq * x


@inner
def affine_sums(tile, importance, part, length, highest):
    """Round to codes 0..highest with INVERSE and OFFSET, and sum; eight values a turn."""
    clear(part, SUM_Q, ZERO)
    clear(part, SUM_QQ, ZERO)
    clear(part, SUM_QX, ZERO)
    for p in range(0, length, 8):
        x = tile[p * LANES : (p + 8) * LANES]
        if importance is None:
            for k in range(LANES):
                i, o = part[INVERSE + k], part[OFFSET + k]
                a, b, c = part[SUM_Q + k], part[SUM_QQ + k], part[SUM_QX + k]
                a, b, c = _affine(x[k], i, o, highest, a, b, c)
                a, b, c = _affine(x[64 + k], i, o, highest, a, b, c)
                a, b, c = _affine(x[128 + k], i, o, highest, a, b, c)
                a, b, c = _affine(x[192 + k], i, o, highest, a, b, c)
                a, b, c = _affine(x[256 + k], i, o, highest, a, b, c)
                a, b, c = _affine(x[320 + k], i, o, highest, a, b, c)
                a, b, c = _affine(x[384 + k], i, o, highest, a, b, c)
                a, b, c = _affine(x[448 + k], i, o, highest, a, b, c)
                part[SUM_Q + k], part[SUM_QQ + k], part[SUM_QX + k] = a, b, c
        else:
            w = importance[p * LANES : (p + 8) * LANES]
            for k in range(LANES):
                i, o = part[INVERSE + k], part[OFFSET + k]
                a, b, c = part[SUM_Q + k], part[SUM_QQ + k], part[SUM_QX + k]
                a, b, c = _affine_weighted(x[k], w[k], i, o, highest, a, b, c)
                a, b, c = _affine_weighted(x[64 + k], w[64 + k], i, o, highest, a, b, c)
                a, b, c = _affine_weighted(x[128 + k], w[128 + k], i, o, highest, a, b, c)
                a, b, c = _affine_weighted(x[192 + k], w[192 + k], i, o, highest, a, b, c)
                a, b, c = _affine_weighted(x[256 + k], w[256 + k], i, o, highest, a, b, c)
                a, b, c = _affine_weighted(x[320 + k], w[320 + k], i, o, highest, a, b, c)
                a, b, c = _affine_weighted(x[384 + k], w[384 + k], i, o, highest, a, b, c)
                a, b, c = _affine_weighted(x[448 + k], w[448 + k], i, o, highest, a, b, c)
                part[SUM_Q + k], part[SUM_QQ + k], part[SUM_QX + k] = a, b, c


@inner
def affine_gain(scale, minimum, q, qq, qx, x, w):
    """How much squared error ``scale * code + minimum`` takes away from that of all zeros."""
    return TWO * (scale * qx + minimum * x) - (
        scale * scale * qq + TWO * scale * minimum * q + minimum * minimum * w
    )


@inner
def accept(part):
    """NEXT becomes the best. In a loop of its own: selecting in place makes stores conditional."""
    for k in range(LANES):
        part[SCALE + k] = part[NEXT + k]
        part[MINIMUM + k] = part[NEXT + STRIDE + k]
        part[GAIN + k] = part[NEXT + 2 * STRIDE + k]
        part[BEST_Q + k] = part[NEXT + 3 * STRIDE + k]
        part[BEST_QQ + k] = part[NEXT + 4 * STRIDE + k]
        part[BEST_QX + k] = part[NEXT + 5 * STRIDE + k]


@inner
def keep_best_affine(part, ceiling):
    """Least squares for the codes just summed, minimum <= ceiling; kept if it beats the best."""
    for k in range(LANES):
        q, qq, qx = part[SUM_Q + k], part[SUM_QQ + k], part[SUM_QX + k]
        x, w = part[SUM_X + k], part[SUM_W + k]
        determinant = w * qq - q * q
        scale = (w * qx - x * q) / determinant
        minimum = (x - scale * q) / w
        # All codes alike, or a minimum the format cannot store: one unknown remains.
        some = qq > ZERO
        single = qx / qq
        single = single if some else ZERO
        constant = min(x / w, ceiling)
        constant = ZERO if some else constant
        free = (determinant > SINGULAR * (w * qq)) & (minimum <= ceiling)
        scale = max(scale if free else single, ZERO)
        minimum = minimum if free else constant
        gain = affine_gain(scale, minimum, q, qq, qx, x, w)
        better = gain > part[GAIN + k]
        part[NEXT + k] = scale if better else part[SCALE + k]
        part[NEXT + STRIDE + k] = minimum if better else part[MINIMUM + k]
        part[NEXT + 2 * STRIDE + k] = gain if better else part[GAIN + k]
        part[NEXT + 3 * STRIDE + k] = q if better else part[BEST_Q + k]
        part[NEXT + 4 * STRIDE + k] = qq if better else part[BEST_QQ + k]
        part[NEXT + 5 * STRIDE + k] = qx if better else part[BEST_QX + k]
    accept(part)


@inner
def forget_best(part):
    """Start over: all zeros, which the first codes with any gain replace."""
    clear(part, GAIN, ZERO)
    clear(part, SCALE, ZERO)
    clear(part, MINIMUM, ZERO)
    clear(part, BEST_Q, ZERO)
    clear(part, BEST_QQ, ZERO)
    clear(part, BEST_QX, ZERO)


@inner
def try_affine_range(part, steps, shift):
    """Let the range span ``steps`` codes, the low end ``shift`` codes below zero (clipped)."""
    for k in range(LANES):
        span = part[HIGH + k] - part[LOW + k]
        inverse = steps / span if span > ZERO else ZERO
        part[INVERSE + k] = inverse
        part[OFFSET + k] = -part[LOW + k] * inverse - shift


@inner
def try_affine_best(part):
    """Round with the best scale and minimum themselves (Lloyd's step)."""
    for k in range(LANES):
        scale = part[SCALE + k]
        inverse = ONE / scale if scale > ZERO else ZERO
        part[INVERSE + k] = inverse
        part[OFFSET + k] = -part[MINIMUM + k] * inverse


@inner
def search_affine(tile, importance, part, length, highest, ceiling, starts, rounds):
    """Best scale and minimum of 64 sub-blocks: independent starts, then Lloyd's rounds.

    starts: (n, 2) float32, how many codes more than ``highest`` the range spans, and the share of
        them clipped at the low end
    """
    describe(tile, importance, part, length, ceiling)
    forget_best(part)
    for i in range(len(starts)):
        try_affine_range(part, highest + starts[i, 0], starts[i, 0] * starts[i, 1])
        affine_sums(tile, importance, part, length, highest)
        keep_best_affine(part, ceiling)
    for _ in range(rounds):
        try_affine_best(part)
        affine_sums(tile, importance, part, length, highest)
        keep_best_affine(part, ceiling)


@inner
def find_peaks(tile, part, length):
    """Each lane's value of largest magnitude, sign kept, into HIGH."""
    for k in range(LANES):
        part[LOW + k] = tile[k]
        part[HIGH + k] = tile[k]
    for p in range(0, length, 4):
        x = tile[p * LANES : (p + 4) * LANES]
        for k in range(LANES):
            a, b, c, d = x[k], x[64 + k], x[128 + k], x[192 + k]
            low, high = min(part[LOW + k], a), max(part[HIGH + k], a)
            low, high = min(low, b), max(high, b)
            low, high = min(low, c), max(high, c)
            part[LOW + k], part[HIGH + k] = min(low, d), max(high, d)
    for k in range(LANES):
        low, high = part[LOW + k], part[HIGH + k]
        part[NEXT + k] = high if high > -low else low
    for k in range(LANES):
        part[HIGH + k] = part[NEXT + k]


@inner
def _scaled(x, inverse, lowest, highest, qq, qx):
    q = np.rint(min(max(x * inverse, lowest), highest))
    return qq + q * q, qx + q * x


@inner
def _scaled_weighted(x, w, inverse, lowest, highest, qq, qx):
    q = np.rint(min(max(x * inverse, lowest), highest))
    wq = w * q
    return qq + wq * q, qx + wq * x


@inner
def scaled_sums(tile, importance, part, length, lowest, highest):
    """Round to codes lowest..highest with INVERSE, and sum; eight values a turn."""
    clear(part, SUM_QQ, ZERO)
    clear(part, SUM_QX, ZERO)
    for p in range(0, length, 8):
        x = tile[p * LANES : (p + 8) * LANES]
        if importance is None:
            for k in range(LANES):
                i = part[INVERSE + k]
                b, c = part[SUM_QQ + k], part[SUM_QX + k]
                b, c = _scaled(x[k], i, lowest, highest, b, c)
                b, c = _scaled(x[64 + k], i, lowest, highest, b, c)
                b, c = _scaled(x[128 + k], i, lowest, highest, b, c)
                b, c = _scaled(x[192 + k], i, lowest, highest, b, c)
                b, c = _scaled(x[256 + k], i, lowest, highest, b, c)
                b, c = _scaled(x[320 + k], i, lowest, highest, b, c)
                b, c = _scaled(x[384 + k], i, lowest, highest, b, c)
                b, c = _scaled(x[448 + k], i, lowest, highest, b, c)
                part[SUM_QQ + k], part[SUM_QX + k] = b, c
        else:
            w = importance[p * LANES : (p + 8) * LANES]
            for k in range(LANES):
                i = part[INVERSE + k]
                b, c = part[SUM_QQ + k], part[SUM_QX + k]
                b, c = _scaled_weighted(x[k], w[k], i, lowest, highest, b, c)
                b, c = _scaled_weighted(x[64 + k], w[64 + k], i, lowest, highest, b, c)
                b, c = _scaled_weighted(x[128 + k], w[128 + k], i, lowest, highest, b, c)
                b, c = _scaled_weighted(x[192 + k], w[192 + k], i, lowest, highest, b, c)
                b, c = _scaled_weighted(x[256 + k], w[256 + k], i, lowest, highest, b, c)
                b, c = _scaled_weighted(x[320 + k], w[320 + k], i, lowest, highest, b, c)
                b, c = _scaled_weighted(x[384 + k], w[384 + k], i, lowest, highest, b, c)
                b, c = _scaled_weighted(x[448 + k], w[448 + k], i, lowest, highest, b, c)
                part[SUM_QQ + k], part[SUM_QX + k] = b, c


@inner
def keep_best_scaled(part):
    """Least squares for the codes just summed; kept where it beats the best."""
    for k in range(LANES):
        qq, qx = part[SUM_QQ + k], part[SUM_QX + k]
        scale = qx / qq
        scale = scale if qq > ZERO else ZERO
        gain = scale * qx
        better = gain > part[GAIN + k]
        part[NEXT + k] = scale if better else part[SCALE + k]
        part[NEXT + 2 * STRIDE + k] = gain if better else part[GAIN + k]
        part[NEXT + 4 * STRIDE + k] = qq if better else part[BEST_QQ + k]
        part[NEXT + 5 * STRIDE + k] = qx if better else part[BEST_QX + k]
    accept(part)


@inner
def search_scaled(tile, importance, part, length, lowest, highest, starts, rounds):
    """Best scale (of either sign) of 64 sub-blocks: independent starts, then Lloyd's rounds.

    starts: (n,) float32, the code, fractional, that the value of largest magnitude maps to
    """
    find_peaks(tile, part, length)
    forget_best(part)
    for i in range(len(starts)):
        for k in range(LANES):
            peak = part[HIGH + k]
            inverse = starts[i] / peak
            part[INVERSE + k] = ZERO if peak == ZERO else inverse
        scaled_sums(tile, importance, part, length, lowest, highest)
        keep_best_scaled(part)
    for _ in range(rounds):
        for k in range(LANES):
            part[INVERSE + k] = reciprocal(part[SCALE + k])
        scaled_sums(tile, importance, part, length, lowest, highest)
        keep_best_scaled(part)
