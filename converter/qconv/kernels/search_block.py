"""Blocks of 32 under float16 parameters: Q4_0, Q5_0, Q8_0 and, with a minimum, Q4_1, Q5_1."""

from __future__ import annotations

import numpy as np

from .half import half_bits, half_value
from .jit import inner, kernel
from .search_lanes import (
    FIELDS,
    GAIN,
    HIGH,
    INVERSE,
    LANES,
    LOW,
    MINIMUM,
    NEXT,
    OFFSET,
    SCALE,
    SCORE,
    TILE,
    ZERO,
    clear,
    describe,
    find_peaks,
    importance_of,
    load_next,
    reciprocal,
    round_values,
    search_affine,
    search_scaled,
    write_codes,
)

BLOCK = 32
INFINITY = np.float32(np.inf)


@inner
def write_halves(values, out):
    """Float16 bits of a tile's parameters, as many as there are blocks left."""
    for k in range(min(LANES, len(out))):
        out[k] = half_bits(values[k])


@inner
def aim_scaled(state, offset):
    """Round SCALE to float16; INVERSE and OFFSET to match."""
    for k in range(LANES):
        state[SCALE + k] = half_value(state[SCALE + k])
        state[INVERSE + k] = reciprocal(state[SCALE + k])
        state[OFFSET + k] = offset


@inner
def aim_affine(state):
    """Round SCALE and MINIMUM to float16; INVERSE and OFFSET to match."""
    for k in range(LANES):
        low = half_value(state[MINIMUM + k])
        state[SCALE + k] = half_value(state[SCALE + k])
        state[MINIMUM + k] = low
        inverse = reciprocal(state[SCALE + k])
        state[INVERSE + k] = inverse
        state[OFFSET + k] = -low * inverse


@inner
def write_blocks(weight, first, state, lowest, highest, rounded, codes):
    """Codes of the tile from block ``first`` on, with INVERSE and OFFSET."""
    blocks = min(LANES, len(weight) // BLOCK - first)
    x, out = weight[first * BLOCK :], codes[first * BLOCK :]
    for k in range(blocks):
        inverse, offset = state[INVERSE + k], state[OFFSET + k]
        round_values(x, k * BLOCK, BLOCK, inverse, offset, lowest, highest, rounded[k * BLOCK :])
    write_codes(rounded, blocks * BLOCK, out)


@kernel
def scaled_blocks(weight, importance, lowest, highest, starts, rounds, codes, scale):
    """Q4_0, Q5_0. All arrays flat, blocks of 32 one after another.

    importance: (tiles that differ, 2048) float32, transposed like a tile; or None
    lowest, highest: codes as values, -16..15 (float32); they are stored from 0 on
    starts, rounds: see search_scaled
    scale: uint16, float16 bits
    """
    tile = np.empty(TILE, np.float32)
    state = np.zeros(FIELDS, np.float32)
    padded = np.zeros(TILE, np.float32)
    for first in range(0, len(weight) // BLOCK, LANES):
        load_next(weight, first * BLOCK, LANES, 1, BLOCK, padded, tile)
        w = importance_of(importance, first // LANES)
        search_scaled(tile, w, state, BLOCK, lowest, highest, starts, rounds)
        aim_scaled(state, -lowest)
        write_halves(state[SCALE:], scale[first:])
        write_blocks(weight, first, state, ZERO, highest - lowest, tile, codes)


@kernel
def affine_blocks(weight, importance, highest, starts, rounds, codes, scale, minimum):
    """Q4_1, Q5_1: as scaled_blocks, with codes 0..highest and a minimum of either sign."""
    tile = np.empty(TILE, np.float32)
    state = np.zeros(FIELDS, np.float32)
    padded = np.zeros(TILE, np.float32)
    base = np.empty(LANES, np.float32)
    for first in range(0, len(weight) // BLOCK, LANES):
        load_next(weight, first * BLOCK, LANES, 1, BLOCK, padded, tile)
        w = importance_of(importance, first // LANES)
        # Seen from its minimum, a block far from zero keeps its digits in the sums.
        describe(tile, None, state, BLOCK, INFINITY)
        for k in range(LANES):
            base[k] = state[LOW + k]
        for p in range(BLOCK):
            x = tile[p * LANES : (p + 1) * LANES]
            for k in range(LANES):
                x[k] -= base[k]
        search_affine(tile, w, state, BLOCK, highest, INFINITY, starts, rounds)
        for k in range(LANES):
            state[MINIMUM + k] += base[k]
        aim_affine(state)
        write_halves(state[SCALE:], scale[first:])
        write_halves(state[MINIMUM:], minimum[first:])
        write_blocks(weight, first, state, ZERO, highest, tile, codes)


@inner
def ordered(bits):
    """Float bits as integers that order as the floats do, and back: their extremes vectorise."""
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@inner
def range_of(bits, s):
    """Lowest and highest value of block ``s``, from its float bits (blocks, 32) int32."""
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for p in range(bits.shape[1]):
        value = ordered(bits[s, p])
        if value < low:
            low = value
        if value > high:
            high = value
    low, high = ordered(low), ordered(high)
    return np.int32(low).view(np.float32), np.int32(high).view(np.float32)


@kernel
def range_blocks(weight, highest, codes, scale, minimum):
    """Q4_1, Q5_1 without search: the range as it is, in float16, and the nearest codes to that."""
    bits = weight.view(np.int32).reshape(-1, BLOCK)
    state = np.zeros(FIELDS, np.float32)
    rounded = np.empty(TILE, np.float32)
    for first in range(0, len(bits), LANES):
        for k in range(min(LANES, len(bits) - first)):
            state[LOW + k], state[HIGH + k] = range_of(bits, first + k)
        for k in range(LANES):
            state[SCALE + k] = (state[HIGH + k] - state[LOW + k]) / highest
            state[MINIMUM + k] = state[LOW + k]
        aim_affine(state)
        write_halves(state[SCALE:], scale[first:])
        write_halves(state[MINIMUM:], minimum[first:])
        write_blocks(weight, first, state, ZERO, highest, rounded, codes)


@inner
def _miss(x, inverse, total):
    t = x * inverse
    rest = t - np.rint(t)
    return total + rest * rest


@inner
def _miss_weighted(x, w, inverse, total):
    t = x * inverse
    rest = t - np.rint(t)
    return total + w * rest * rest


@inner
def misses(tile, importance, part):
    """Squared error in steps, into SCORE, when no code is clipped."""
    clear(part, SCORE, ZERO)
    for p in range(0, BLOCK, 4):
        x = tile[p * LANES : (p + 4) * LANES]
        if importance is None:
            for k in range(LANES):
                i, total = part[INVERSE + k], part[SCORE + k]
                total = _miss(x[k], i, total)
                total = _miss(x[64 + k], i, total)
                total = _miss(x[128 + k], i, total)
                part[SCORE + k] = _miss(x[192 + k], i, total)
        else:
            w = importance[p * LANES : (p + 4) * LANES]
            for k in range(LANES):
                i, total = part[INVERSE + k], part[SCORE + k]
                total = _miss_weighted(x[k], w[k], i, total)
                total = _miss_weighted(x[64 + k], w[64 + k], i, total)
                total = _miss_weighted(x[128 + k], w[128 + k], i, total)
                part[SCORE + k] = _miss_weighted(x[192 + k], w[192 + k], i, total)


@inner
def keep_best_step(state):
    """The step tried, in MINIMUM, becomes SCALE where it loses less."""
    for k in range(LANES):
        step = state[MINIMUM + k]
        loss = state[SCORE + k] * step * step
        better = loss < state[GAIN + k]
        state[NEXT + k] = loss if better else state[GAIN + k]
        state[OFFSET + k] = step if better else state[SCALE + k]
    for k in range(LANES):
        state[GAIN + k] = state[NEXT + k]
        state[SCALE + k] = state[OFFSET + k]


@kernel
def byte_blocks(weight, importance, tries, codes, scale):
    """Q8_0: of the scales that map the peak to one of ``tries`` (float32), the best.

    codes: int8, -127..127; scale: uint16, float16 bits
    """
    tile = np.empty(TILE, np.float32)
    state = np.zeros(FIELDS, np.float32)
    padded = np.zeros(TILE, np.float32)
    highest = np.float32(127)
    for first in range(0, len(weight) // BLOCK, LANES):
        load_next(weight, first * BLOCK, LANES, 1, BLOCK, padded, tile)
        w = importance_of(importance, first // LANES)
        find_peaks(tile, state, BLOCK)
        clear(state, GAIN, INFINITY)
        for k in range(LANES):  # stays, infinite, where float16 ends: for the grid to refuse
            state[SCALE + k] = half_value(abs(state[HIGH + k]) / highest)
        for i in range(len(tries)):
            for k in range(LANES):
                state[MINIMUM + k] = half_value(abs(state[HIGH + k]) / tries[i])
                state[INVERSE + k] = reciprocal(state[MINIMUM + k])
            misses(tile, w, state)
            keep_best_step(state)
        aim_scaled(state, ZERO)
        write_halves(state[SCALE:], scale[first:])
        write_blocks(weight, first, state, -highest, highest, tile, codes)
