"""Blocks of 32 under float16 parameters: Q4_0, Q5_0, Q8_0 and, with a minimum, Q4_1, Q5_1."""

from __future__ import annotations

import numpy as np
from numba import njit

from .half import half_bits, half_value
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
    ONE,
    SCALE,
    SCORE,
    TILE,
    ZERO,
    clear,
    describe,
    find_peaks,
    load,
    search_affine,
    search_scaled,
    write_codes,
)

BLOCK = 32
INFINITY = np.float32(np.inf)


@njit(cache=True, nogil=True, error_model="numpy")
def _source(weight, first, padded):
    """The 64 blocks from ``first`` on, with zeros for those beyond the end."""
    source = weight[first * BLOCK : (first + LANES) * BLOCK]
    if len(source) == TILE:
        return source
    padded[: len(source)] = source
    return padded


@njit(cache=True, nogil=True, error_model="numpy")
def write_halves(values, out):
    """Float16 bits of a tile's parameters, as many as there are blocks left."""
    for k in range(min(LANES, len(out))):
        out[k] = half_bits(values[k])


@njit(cache=True, nogil=True, error_model="numpy")
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
    rows, code_rows = weight.reshape(-1, BLOCK), codes.reshape(-1, BLOCK)
    for first in range(0, len(rows), LANES):
        load(_source(weight, first, padded), LANES, 1, BLOCK, tile)
        w = None if importance is None else importance[(first // LANES) % len(importance)]
        search_scaled(tile, w, state, BLOCK, lowest, highest, starts, rounds)
        for k in range(LANES):
            step = half_value(state[SCALE + k])
            inverse = ONE / step
            state[NEXT + k] = step
            state[INVERSE + k] = ZERO if step == ZERO else inverse
        write_halves(state[NEXT:], scale[first:])
        for k in range(min(LANES, len(rows) - first)):
            inverse = state[INVERSE + k]
            write_codes(rows, first + k, inverse, -lowest, ZERO, highest - lowest, code_rows)


@njit(cache=True, nogil=True, error_model="numpy")
def affine_blocks(weight, importance, highest, starts, rounds, codes, scale, minimum):
    """Q4_1, Q5_1: as scaled_blocks, with codes 0..highest and a minimum of either sign."""
    tile = np.empty(TILE, np.float32)
    state = np.zeros(FIELDS, np.float32)
    padded = np.zeros(TILE, np.float32)
    base = np.empty(LANES, np.float32)
    rows, code_rows = weight.reshape(-1, BLOCK), codes.reshape(-1, BLOCK)
    for first in range(0, len(rows), LANES):
        load(_source(weight, first, padded), LANES, 1, BLOCK, tile)
        w = None if importance is None else importance[(first // LANES) % len(importance)]
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
            step, low = half_value(state[SCALE + k]), half_value(state[MINIMUM + k] + base[k])
            inverse = ONE / step
            inverse = ZERO if step == ZERO else inverse
            state[NEXT + k] = step
            state[SCORE + k] = low
            state[INVERSE + k] = inverse
            state[OFFSET + k] = -low * inverse
        write_halves(state[NEXT:], scale[first:])
        write_halves(state[SCORE:], minimum[first:])
        for k in range(min(LANES, len(rows) - first)):
            inverse, offset = state[INVERSE + k], state[OFFSET + k]
            write_codes(rows, first + k, inverse, offset, ZERO, highest, code_rows)


@njit(cache=True, nogil=True, error_model="numpy")
def _ordered(bits):
    """Float bits as integers that order as the floats do, and back: their extremes vectorise."""
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@njit(cache=True, nogil=True, error_model="numpy")
def _range(bits, s):
    """Lowest and highest value of block ``s``, from its float bits (blocks, 32) int32."""
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for p in range(bits.shape[1]):
        value = _ordered(bits[s, p])
        if value < low:
            low = value
        if value > high:
            high = value
    low, high = _ordered(low), _ordered(high)
    return np.int32(low).view(np.float32), np.int32(high).view(np.float32)


@njit(cache=True, nogil=True, error_model="numpy")
def range_blocks(weight, highest, codes, scale, minimum):
    """Q4_1, Q5_1 without search: the range as it is, in float16, and the nearest codes to that."""
    rows, code_rows = weight.reshape(-1, BLOCK), codes.reshape(-1, BLOCK)
    bits = weight.view(np.int32).reshape(-1, BLOCK)
    state = np.zeros(FIELDS, np.float32)
    for first in range(0, len(rows), LANES):
        blocks = min(LANES, len(rows) - first)
        for k in range(blocks):
            state[LOW + k], state[HIGH + k] = _range(bits, first + k)
        for k in range(LANES):
            low = half_value(state[LOW + k])
            step = half_value((state[HIGH + k] - state[LOW + k]) / highest)
            inverse = ONE / step
            inverse = ZERO if step == ZERO else inverse
            state[NEXT + k] = step
            state[SCORE + k] = low
            state[INVERSE + k] = inverse
            state[OFFSET + k] = -low * inverse
        write_halves(state[NEXT:], scale[first:])
        write_halves(state[SCORE:], minimum[first:])
        for k in range(blocks):
            inverse, offset = state[INVERSE + k], state[OFFSET + k]
            write_codes(rows, first + k, inverse, offset, ZERO, highest, code_rows)


@njit(cache=True, nogil=True, error_model="numpy")
def _miss(x, inverse, total):
    t = x * inverse
    rest = t - np.rint(t)
    return total + rest * rest


@njit(cache=True, nogil=True, error_model="numpy")
def _miss_weighted(x, w, inverse, total):
    t = x * inverse
    rest = t - np.rint(t)
    return total + w * rest * rest


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
def byte_blocks(weight, importance, tries, codes, scale):
    """Q8_0: of the scales that map the peak to one of ``tries`` (float32), the best.

    codes: int8, -127..127; scale: uint16, float16 bits
    """
    tile = np.empty(TILE, np.float32)
    state = np.zeros(FIELDS, np.float32)
    padded = np.zeros(TILE, np.float32)
    rows, code_rows = weight.reshape(-1, BLOCK), codes.reshape(-1, BLOCK)
    highest = np.float32(127)
    for first in range(0, len(rows), LANES):
        load(_source(weight, first, padded), LANES, 1, BLOCK, tile)
        w = None if importance is None else importance[(first // LANES) % len(importance)]
        find_peaks(tile, state, BLOCK)
        clear(state, GAIN, INFINITY)
        for k in range(LANES):  # stays, infinite, where float16 ends: for the grid to refuse
            state[SCALE + k] = half_value(abs(state[HIGH + k]) / highest)
        for i in range(len(tries)):
            for k in range(LANES):
                step = half_value(abs(state[HIGH + k]) / tries[i])
                inverse = ONE / step
                state[MINIMUM + k] = step
                state[INVERSE + k] = ZERO if step == ZERO else inverse
            misses(tile, w, state)
            for k in range(LANES):
                step = state[MINIMUM + k]
                loss = state[SCORE + k] * step * step
                better = loss < state[GAIN + k]
                state[NEXT + k] = loss if better else state[GAIN + k]
                state[OFFSET + k] = step if better else state[SCALE + k]
            for k in range(LANES):
                state[GAIN + k] = state[NEXT + k]
                state[SCALE + k] = state[OFFSET + k]
        for k in range(LANES):
            step = state[SCALE + k]
            inverse = ONE / step
            state[INVERSE + k] = ZERO if step == ZERO else inverse
        write_halves(state[SCALE:], scale[first:])
        for k in range(min(LANES, len(rows) - first)):
            inverse = state[INVERSE + k]
            _write_bytes(rows, first + k, inverse, highest, code_rows)


@njit(cache=True, nogil=True, error_model="numpy")
def _write_bytes(weight, s, inverse, highest, codes):
    for p in range(BLOCK):
        code = np.rint(min(max(weight[s, p] * inverse, -highest), highest))
        codes[s, p] = np.int8(np.int32(code))
