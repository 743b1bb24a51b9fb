"""K-quant super-blocks: sub-scales (and minimums) as small integers under float16 super-scales.

For given codes the squared error is a quadratic in a sub-block's scale and minimum, known from five
sums. So the integers and the super-scales are chosen on that quadratic, without another pass over
the weights; rounding the weights to what was chosen and refitting alternates with it.
"""

from __future__ import annotations

import numpy as np

from .half import half_bits, half_value
from .jit import inner, kernel
from .search_lanes import (
    BEST_Q,
    BEST_QQ,
    BEST_QX,
    FIELDS,
    GAIN,
    INVERSE,
    LANES,
    MINIMUM,
    OFFSET,
    ONE,
    SCALE,
    SCORE,
    SINGULAR,
    SUB_MINIMUM,
    SUB_SCALE,
    SUM_W,
    SUM_X,
    SUPER_MINIMUM,
    SUPER_SCALE,
    TILE,
    TWO,
    WORST,
    ZERO,
    affine_gain,
    affine_sums,
    clear,
    from_value,
    keep_best_affine,
    keep_best_scaled,
    load_next,
    reciprocal,
    round_values,
    scaled_sums,
    search_affine,
    search_scaled,
    write_codes,
)

OWNERS = 8  # super-blocks in a tile
LARGEST_HALF = np.float32(65504)

# Rows of the per-super-block array, eight floats each: the best, the trial, extremes, sums.
_ROWS = OWNERS * np.arange(16, dtype=np.int64)
BEST_D, BEST_M, BEST_SCORE, TRY_D, TRY_M, TRY_SCORE = _ROWS[:6]
MOST_SCALE, LEAST_MINIMUM, NEXT_D, NEXT_M, NEXT_SCORE = _ROWS[6:11]
A, B, C, P, Q = _ROWS[11:]
ROWS = 128


@inner
def spread(part, field, owners, row):
    """A number per super-block, to the lanes of its sub-blocks."""
    source = owners[row : row + OWNERS]
    target = part[field : field + LANES]
    for r in range(OWNERS):
        value = source[r]
        target[r] = value
        target[8 + r] = value
        target[16 + r] = value
        target[24 + r] = value
        target[32 + r] = value
        target[40 + r] = value
        target[48 + r] = value
        target[56 + r] = value


@inner
def add_up(part, field, owners, row):
    """Add a field over the sub-blocks of each super-block, in order."""
    x = part[field : field + LANES]
    target = owners[row : row + OWNERS]
    for r in range(OWNERS):
        total = x[r] + x[8 + r] + x[16 + r] + x[24 + r]
        target[r] += total + x[32 + r] + x[40 + r] + x[48 + r] + x[56 + r]


@inner
def extremes(part, lowest_of, owners):
    """Largest scale, and the lowest of another field, of each super-block so far."""
    for j in range(OWNERS):
        scale = part[SCALE + j * OWNERS : SCALE + j * OWNERS + OWNERS]
        other = part[lowest_of + j * OWNERS : lowest_of + j * OWNERS + OWNERS]
        for r in range(OWNERS):
            owners[MOST_SCALE + r] = max(owners[MOST_SCALE + r], scale[r])
            owners[LEAST_MINIMUM + r] = min(owners[LEAST_MINIMUM + r], other[r])


@inner
def choose_affine_integers(part, most):
    """Sub-scale and sub-minimum 0..most that lose least under the super-scales spread here.

    The minimum's error costs more than the scale's, so both integers around the free minimum are
    tried, each with the scale that then fits best.
    """
    for k in range(LANES):
        d, dm = part[SUPER_SCALE + k], part[SUPER_MINIMUM + k]
        q, qq, qx = part[BEST_Q + k], part[BEST_QQ + k], part[BEST_QX + k]
        x, w = part[SUM_X + k], part[SUM_W + k]
        curvature = d * qq
        per_step = ONE / curvature if curvature > ZERO else ZERO
        low = min(np.floor(-part[MINIMUM + k] / dm), most) if dm > ZERO else ZERO
        high = min(low + ONE, most)
        minimum = -(dm * low)
        low_scale = np.rint(min(max((qx - minimum * q) * per_step, ZERO), most))
        low_gain = affine_gain(d * low_scale, minimum, q, qq, qx, x, w)
        minimum = -(dm * high)
        high_scale = np.rint(min(max((qx - minimum * q) * per_step, ZERO), most))
        high_gain = affine_gain(d * high_scale, minimum, q, qq, qx, x, w)
        up = high_gain > low_gain
        part[SCORE + k] = high_gain if up else low_gain
        part[SUB_SCALE + k] = high_scale if up else low_scale
        part[SUB_MINIMUM + k] = high if up else low


@inner
def keep_best_super(owners):
    """The trial becomes the best where its score is higher."""
    for r in range(OWNERS):
        better = owners[TRY_SCORE + r] > owners[BEST_SCORE + r]
        owners[NEXT_D + r] = owners[TRY_D + r] if better else owners[BEST_D + r]
        owners[NEXT_M + r] = owners[TRY_M + r] if better else owners[BEST_M + r]
        owners[NEXT_SCORE + r] = owners[TRY_SCORE + r] if better else owners[BEST_SCORE + r]
    for i in range(3 * OWNERS):
        owners[BEST_D + i] = owners[NEXT_D + i]


@inner
def try_affine_super(state, groups, most, owners):
    """Score the trial super-scales; keep them where they beat the best."""
    for r in range(OWNERS):
        owners[TRY_SCORE + r] = ZERO
    for g in range(groups):
        part = state[g * LANES :]
        spread(part, SUPER_SCALE, owners, TRY_D)
        spread(part, SUPER_MINIMUM, owners, TRY_M)
        choose_affine_integers(part, most)
        add_up(part, SCORE, owners, TRY_SCORE)
    keep_best_super(owners)


@inner
def search_affine_super(state, groups, most, minimum_tries, scale_tries, owners):
    """Choose super-minimum, then super-scale: the largest may map to ``most`` or a little below."""
    for r in range(OWNERS):
        owners[BEST_SCORE + r] = WORST
        owners[MOST_SCALE + r] = ZERO
        owners[LEAST_MINIMUM + r] = ZERO
    for g in range(groups):
        extremes(state[g * LANES :], MINIMUM, owners)
    for r in range(OWNERS):
        owners[TRY_D + r] = half_value(owners[MOST_SCALE + r] / most)
        # What stays when no score is a number: infinite where float16 ends, for the grid to refuse.
        owners[BEST_D + r] = owners[TRY_D + r]
        owners[BEST_M + r] = half_value((ZERO - owners[LEAST_MINIMUM + r]) / most)
    for i in range(len(minimum_tries)):
        for r in range(OWNERS):
            owners[TRY_M + r] = half_value(
                (ZERO - owners[LEAST_MINIMUM + r]) / (most + minimum_tries[i])
            )
        try_affine_super(state, groups, most, owners)
    for r in range(OWNERS):
        owners[TRY_M + r] = owners[BEST_M + r]
    for i in range(len(scale_tries)):
        for r in range(OWNERS):
            owners[TRY_D + r] = half_value(owners[MOST_SCALE + r] / (most + scale_tries[i]))
        try_affine_super(state, groups, most, owners)


@inner
def settle_affine(state, groups, most, owners):
    """Integers under the best super-scales."""
    for g in range(groups):
        part = state[g * LANES :]
        spread(part, SUPER_SCALE, owners, BEST_D)
        spread(part, SUPER_MINIMUM, owners, BEST_M)
        choose_affine_integers(part, most)


@inner
def aim_affine(part):
    """INVERSE and OFFSET of what was settled."""
    for k in range(LANES):
        scale = part[SUPER_SCALE + k] * part[SUB_SCALE + k]
        inverse = ONE / scale if scale > ZERO else ZERO
        part[INVERSE + k] = inverse
        part[OFFSET + k] = part[SUPER_MINIMUM + k] * part[SUB_MINIMUM + k] * inverse


@inner
def refit_affine_super(state, groups, owners):
    """Least squares for the two super-scales, codes and integers given; then float16."""
    for r in range(ROWS - A):
        owners[A + r] = ZERO
    for g in range(groups):
        part = state[g * LANES :]
        for k in range(LANES):
            part[SCORE + k] = part[SUB_SCALE + k] * part[SUB_SCALE + k] * part[BEST_QQ + k]
        add_up(part, SCORE, owners, A)
        for k in range(LANES):
            part[SCORE + k] = part[SUB_SCALE + k] * part[SUB_MINIMUM + k] * part[BEST_Q + k]
        add_up(part, SCORE, owners, B)
        for k in range(LANES):
            part[SCORE + k] = part[SUB_MINIMUM + k] * part[SUB_MINIMUM + k] * part[SUM_W + k]
        add_up(part, SCORE, owners, C)
        for k in range(LANES):
            part[SCORE + k] = part[SUB_SCALE + k] * part[BEST_QX + k]
        add_up(part, SCORE, owners, P)
        for k in range(LANES):
            part[SCORE + k] = part[SUB_MINIMUM + k] * part[SUM_X + k]
        add_up(part, SCORE, owners, Q)
    for r in range(OWNERS):
        a, b, c = owners[A + r], owners[B + r], owners[C + r]
        determinant = a * c - b * b
        scale = (c * owners[P + r] - b * owners[Q + r]) / determinant
        minimum = (b * owners[P + r] - a * owners[Q + r]) / determinant
        sound = (determinant > SINGULAR * (a * c)) & (scale > ZERO) & (minimum > ZERO)
        sound = sound & (scale <= LARGEST_HALF) & (minimum <= LARGEST_HALF)
        owners[BEST_D + r] = half_value(scale) if sound else owners[BEST_D + r]
        owners[BEST_M + r] = half_value(minimum) if sound else owners[BEST_M + r]


@inner
def weigh(tile, length, out):
    """Weights by magnitude: its own, plus the mean magnitude of the sub-block."""
    mean = np.empty(LANES, np.float32)
    for first in range(0, TILE, length * LANES):
        clear(mean, 0, ZERO)
        for p in range(length):
            x = tile[first + p * LANES : first + (p + 1) * LANES]
            for k in range(LANES):
                mean[k] += abs(x[k])
        for k in range(LANES):
            mean[k] = mean[k] / np.float32(length)
        for p in range(length):
            x = tile[first + p * LANES : first + (p + 1) * LANES]
            w = out[first + p * LANES : first + (p + 1) * LANES]
            for k in range(LANES):
                w[k] = mean[k] + abs(x[k])


@inner
def weights_of(importance, number, tile, length, magnitude):
    """What errors of a tile weigh: nothing given, importance, or, of no tiles, by magnitude."""
    if importance is None:
        return None
    if len(importance) > 0:
        return importance[number % len(importance)]
    weigh(tile, length, magnitude)
    return magnitude


@inner
def lane_of(j, r):
    """Where sub-block ``j`` of super-block ``r`` lies in a field."""
    return (j >> 3) * LANES + (j & 7) * OWNERS + r


@inner
def write_superblock(weight, s, length, state, r, highest, rounded, codes):
    """Codes of super-block ``s``, the tile's ``r``-th, with INVERSE and OFFSET."""
    for j in range(256 // length):
        k = lane_of(j, r)
        inverse, offset = state[INVERSE + k], state[OFFSET + k]
        first, at = s * 256 + j * length, j * length
        round_values(weight, first, length, inverse, offset, ZERO, highest, rounded[at:])
    write_codes(rounded, 256, codes[s * 256 :])


@inner
def round_again_affine(tile, own, state, groups, length, highest):
    """Codes for what is settled, and least squares for those."""
    for g in range(groups):
        part, x = state[g * LANES :], tile[g * length * LANES :]
        aim_affine(part)
        affine_sums(x, from_value(own, g * length * LANES), part, length, highest)
        clear(part, GAIN, WORST)
        keep_best_affine(part, ZERO)


@kernel
def affine_superblocks(
    weight,
    importance,
    length,
    highest,
    most,
    starts,
    rounds,
    minimum_tries,
    scale_tries,
    refits,
    codes,
    super_scale,
    super_minimum,
    sub_scales,
    sub_minimums,
):
    """Q2_K, Q4_K, Q5_K. All arrays flat, super-blocks of 256 one after another.

    importance: (tiles that differ, 2048) float32, transposed like a tile; None for equal weights;
        (0, 2048) for weights by magnitude
    length: weights per sub-block; highest: largest code; most: largest sub-scale (float32 both)
    starts, rounds: see search_affine; minimum_tries, scale_tries: see search_affine_super
    refits: how often to round to what is settled and settle again
    super_scale, super_minimum: uint16, float16 bits; sub_scales, sub_minimums: uint8
    """
    sub = 256 // length
    groups = sub // 8
    tile, magnitude = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    state = np.zeros(FIELDS, np.float32)
    owners = np.zeros(ROWS, np.float32)
    supers = len(weight) // 256
    padded = np.zeros(TILE, np.float32)
    for first in range(0, supers, OWNERS):
        load_next(weight, first * 256, OWNERS, sub, length, padded, tile)
        own = weights_of(importance, first // OWNERS, tile, length, magnitude)
        for g in range(groups):
            x = tile[g * length * LANES :]
            w = from_value(own, g * length * LANES)
            search_affine(x, w, state[g * LANES :], length, highest, ZERO, starts, rounds)
        search_affine_super(state, groups, most, minimum_tries, scale_tries, owners)
        settle_affine(state, groups, most, owners)
        for _ in range(refits):
            round_again_affine(tile, own, state, groups, length, highest)
            refit_affine_super(state, groups, owners)
            settle_affine(state, groups, most, owners)
        for g in range(groups):
            aim_affine(state[g * LANES :])
        for r in range(min(OWNERS, supers - first)):
            super_scale[first + r] = half_bits(owners[BEST_D + r])
            super_minimum[first + r] = half_bits(owners[BEST_M + r])
            for j in range(sub):
                k = lane_of(j, r)
                sub_scales[(first + r) * sub + j] = np.int32(state[SUB_SCALE + k])
                sub_minimums[(first + r) * sub + j] = np.int32(state[SUB_MINIMUM + k])
            write_superblock(weight, first + r, length, state, r, highest, tile, codes)


@inner
def choose_scaled_integers(part, lowest, highest):
    """Sub-scale lowest..highest that loses least under the super-scale spread here."""
    for k in range(LANES):
        d, qq, qx = part[SUPER_SCALE + k], part[BEST_QQ + k], part[BEST_QX + k]
        curvature = d * qq
        steps = qx / curvature
        steps = ZERO if curvature == ZERO else steps
        chosen = np.rint(min(max(steps, lowest), highest))
        scale = d * chosen
        part[SUB_SCALE + k] = chosen
        part[SCORE + k] = TWO * scale * qx - scale * scale * qq


@inner
def search_scaled_super(state, groups, lowest, highest, tries, owners):
    """Choose the super-scale; tries: (n,) float32, what the largest sub-scale maps to."""
    for r in range(OWNERS):
        owners[BEST_SCORE + r] = WORST
        owners[MOST_SCALE + r] = ZERO
        owners[LEAST_MINIMUM + r] = ZERO
    for g in range(groups):
        extremes(state[g * LANES :], SCALE, owners)
    for r in range(OWNERS):
        # What stays when no score is a number: infinite where float16 ends, for the grid to refuse.
        most = max(owners[MOST_SCALE + r], -owners[LEAST_MINIMUM + r])
        owners[BEST_D + r] = half_value(most / highest)
    for i in range(len(tries)):
        for r in range(OWNERS):
            most, least = owners[MOST_SCALE + r], owners[LEAST_MINIMUM + r]
            owners[TRY_D + r] = half_value((most if most > -least else least) / tries[i])
            owners[TRY_SCORE + r] = ZERO
        for g in range(groups):
            part = state[g * LANES :]
            spread(part, SUPER_SCALE, owners, TRY_D)
            choose_scaled_integers(part, lowest, highest)
            add_up(part, SCORE, owners, TRY_SCORE)
        keep_best_super(owners)


@inner
def settle_scaled(state, groups, lowest, highest, owners):
    """Integers under the best super-scale."""
    for g in range(groups):
        part = state[g * LANES :]
        spread(part, SUPER_SCALE, owners, BEST_D)
        choose_scaled_integers(part, lowest, highest)


@inner
def aim_scaled(part, offset):
    """INVERSE and OFFSET of what was settled."""
    for k in range(LANES):
        part[INVERSE + k] = reciprocal(part[SUPER_SCALE + k] * part[SUB_SCALE + k])
        part[OFFSET + k] = offset


@inner
def refit_scaled_super(state, groups, owners):
    """Least squares for the super-scale, codes and integers given; then float16."""
    for r in range(OWNERS):
        owners[A + r] = ZERO
        owners[P + r] = ZERO
    for g in range(groups):
        part = state[g * LANES :]
        for k in range(LANES):
            part[SCORE + k] = part[SUB_SCALE + k] * part[SUB_SCALE + k] * part[BEST_QQ + k]
        add_up(part, SCORE, owners, A)
        for k in range(LANES):
            part[SCORE + k] = part[SUB_SCALE + k] * part[BEST_QX + k]
        add_up(part, SCORE, owners, P)
    for r in range(OWNERS):
        scale = owners[P + r] / owners[A + r]
        sound = (owners[A + r] > ZERO) & (abs(scale) <= LARGEST_HALF)
        owners[BEST_D + r] = half_value(scale) if sound else owners[BEST_D + r]


@inner
def round_again_scaled(tile, own, state, groups, length, lowest, highest):
    """As round_again_affine, for a scale alone."""
    for g in range(groups):
        part, x = state[g * LANES :], tile[g * length * LANES :]
        aim_scaled(part, ZERO)
        scaled_sums(x, from_value(own, g * length * LANES), part, length, lowest, highest)
        clear(part, GAIN, WORST)
        keep_best_scaled(part)


@kernel
def scaled_superblocks(
    weight,
    importance,
    length,
    lowest,
    highest,
    least,
    most,
    starts,
    rounds,
    tries,
    refits,
    codes,
    super_scale,
    sub_scales,
):
    """Q3_K, Q6_K. As affine_superblocks, without minimums; sub-scales least..most are int8.

    lowest, highest: codes as values, -32..31; they are stored from 0 on
    starts, rounds: see search_scaled; tries: see search_scaled_super
    """
    sub = 256 // length
    groups = sub // 8
    tile, magnitude = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    state = np.zeros(FIELDS, np.float32)
    owners = np.zeros(ROWS, np.float32)
    supers = len(weight) // 256
    padded = np.zeros(TILE, np.float32)
    for first in range(0, supers, OWNERS):
        load_next(weight, first * 256, OWNERS, sub, length, padded, tile)
        own = weights_of(importance, first // OWNERS, tile, length, magnitude)
        for g in range(groups):
            x = tile[g * length * LANES :]
            w = from_value(own, g * length * LANES)
            search_scaled(x, w, state[g * LANES :], length, lowest, highest, starts, rounds)
        search_scaled_super(state, groups, least, most, tries, owners)
        settle_scaled(state, groups, least, most, owners)
        for _ in range(refits):
            round_again_scaled(tile, own, state, groups, length, lowest, highest)
            refit_scaled_super(state, groups, owners)
            settle_scaled(state, groups, least, most, owners)
        for g in range(groups):
            aim_scaled(state[g * LANES :], -lowest)
        for r in range(min(OWNERS, supers - first)):
            super_scale[first + r] = half_bits(owners[BEST_D + r])
            for j in range(sub):
                sub_scales[(first + r) * sub + j] = np.int32(state[SUB_SCALE + lane_of(j, r)])
            write_superblock(weight, first + r, length, state, r, highest - lowest, tile, codes)
