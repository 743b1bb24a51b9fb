"""llama.cpp's quantizers of 32-value blocks, byte for byte: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

Source of the algorithms: https://github.com/ggml-org/llama.cpp, ``ggml/src/ggml-quants.c``. Kernels
write into arrays the caller made; halves are uint16. ``blocks`` is (n, 32) float32, the rows of a
weight cut into blocks; ``importance`` is (blocks per row, 32) float32.

A block whose scale is so small that its reciprocal is infinite gets codes 0: converting infinity or
NaN to an integer yields the low byte of 0x80000000 on x86-64, and the stored scale is 0 anyway.
"""

# Comparisons are C's, written out: numba's min and max widen integers, and treat NaN and -0 their
# own way. Flags go to compiled functions by position, as everything does.
# ruff: noqa: FURB136, FBT003

from __future__ import annotations

import numpy as np

from .ggml_search import LANES, ZERO, affine_search, symmetric_search
from .half import half_bits
from .jit import inner, kernel

_ONE = np.float32(1)
_HALF = np.float32(0.5)
_INFINITY = np.float32(np.inf)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_BLOCK = 32


@inner
def _largest_magnitude(blocks, b):
    """The block's largest magnitude: as integers, since float maxima do not vectorize."""
    largest = np.int32(0)
    for i in range(_BLOCK):
        bits = np.int32(np.float32(blocks[b, i]).view(np.int32) & _MAGNITUDE)
        largest = bits if bits > largest else largest
    return np.int32(largest).view(np.float32)


@inner
def _reciprocal(scale):
    """1 / scale, and 0 for scales without a finite reciprocal."""
    inverse = _ONE / scale
    return inverse if abs(inverse) < _INFINITY else ZERO


@kernel
def q8_0(blocks, scale, codes):
    """Largest magnitude over 127; codes round half away from zero. codes: (n, 32) int8."""
    for b in range(blocks.shape[0]):
        d = _largest_magnitude(blocks, b) / np.float32(127)
        inverse = _reciprocal(d)
        scale[b] = half_bits(d)
        for i in range(_BLOCK):
            v = blocks[b, i] * inverse
            whole = np.int32(v)
            rest = v - np.float32(whole)
            up = np.int32(1) if rest >= _HALF else np.int32(0)
            down = np.int32(1) if rest <= -_HALF else np.int32(0)
            codes[b, i] = np.int8(whole + up - down)


@kernel
def symmetric(blocks, half, scale, codes):
    """Signed peak over ``-half``; codes truncate after adding ``half`` and a half. codes: uint8."""
    offset = np.float32(np.float32(half) + _HALF)
    top = np.int32(2 * half - 1)
    for b in range(blocks.shape[0]):
        largest = _largest_magnitude(blocks, b)
        first = np.int32(_BLOCK - 1)
        for i in range(_BLOCK):
            at = np.int32(i) if abs(blocks[b, i]) == largest else np.int32(_BLOCK - 1)
            first = at if at < first else first
        peak = blocks[b, first] if largest > ZERO else ZERO
        d = peak / np.float32(-half)
        inverse = _reciprocal(d)
        scale[b] = half_bits(d)
        # No finite reciprocal: llama.cpp's code is the centre for a zero block, 0 for a tiny one.
        start = ZERO if (inverse == ZERO) & (d != ZERO) else offset
        for i in range(_BLOCK):
            code = np.int32(blocks[b, i] * inverse + start)
            codes[b, i] = np.uint8(top if code > top else code)


@inner
def _extremes(blocks, b):
    """Smallest and largest value, by C's comparisons: of equal zeros the first one's sign stays."""
    low = blocks[b, 0]
    high = blocks[b, 0]
    for i in range(1, _BLOCK):
        v = blocks[b, i]
        low = v if v < low else low
        high = v if v > high else high
    return low, high


@kernel
def affine(blocks, highest, scale, minimum, codes):
    """Range over ``highest``, from the smallest value; codes round half up. codes: uint8."""
    top = np.int32(highest)
    for b in range(blocks.shape[0]):
        low, high = _extremes(blocks, b)
        d = (high - low) / np.float32(highest)
        inverse = _reciprocal(d)
        scale[b] = half_bits(d)
        minimum[b] = half_bits(low)
        start = ZERO if (inverse == ZERO) & (d != ZERO) else _HALF
        for i in range(_BLOCK):
            code = np.int32((blocks[b, i] - low) * inverse + start)
            codes[b, i] = np.uint8(top if code > top else code)


@inner
def _row_mean_squares(blocks, per_row, out):
    """Mean square of each row, summed left to right; eight rows at a time hide the latency."""
    rows = blocks.shape[0] // per_row
    total = np.empty(8, np.float32)
    for start in range(0, rows, 8):
        count = min(8, rows - start)
        for r in range(8):
            total[r] = ZERO
        for b in range(per_row):
            for i in range(_BLOCK):
                for r in range(count):
                    v = blocks[(start + r) * per_row + b, i]
                    total[r] += v * v
        for r in range(count):
            out[start + r] = total[r] / np.float32(per_row * _BLOCK)


@inner
def _load(blocks, importance, mean_squares, start, x, w):
    """Fill a tile with blocks from ``start`` on, and their weights; missing lanes are zero."""
    count = min(LANES, blocks.shape[0] - start)
    per_row = importance.shape[0]
    for k in range(LANES):
        if k < count:
            b = start + k
            sigma = mean_squares[b // per_row]
            for i in range(_BLOCK):
                v = blocks[b, i]
                x[i, k] = v
                w[i, k] = importance[b % per_row, i] * np.sqrt(sigma + v * v)
        else:
            for i in range(_BLOCK):
                x[i, k] = ZERO
                w[i, k] = ZERO
    return count


@kernel
def symmetric_weighted(blocks, importance, half, scale, codes):
    """As :func:`symmetric`, with a search weighted by importance."""
    mean_squares = np.empty(blocks.shape[0] // importance.shape[0], np.float32)
    _row_mean_squares(blocks, importance.shape[0], mean_squares)
    x = np.empty((_BLOCK, LANES), np.float32)
    w = np.empty((_BLOCK, LANES), np.float32)
    found = np.empty((_BLOCK, LANES), np.uint8)
    d = np.empty(LANES, np.float32)
    for start in range(0, blocks.shape[0], LANES):
        count = _load(blocks, importance, mean_squares, start, x, w)
        symmetric_search(x, w, 0, _BLOCK, np.int32(half), d, found)
        for k in range(count):
            scale[start + k] = half_bits(d[k])
            for i in range(_BLOCK):
                codes[start + k, i] = found[i, k]


@kernel
def affine_weighted(blocks, importance, highest, scale, minimum, codes):
    """As :func:`affine`, with a search weighted by importance."""
    mean_squares = np.empty(blocks.shape[0] // importance.shape[0], np.float32)
    _row_mean_squares(blocks, importance.shape[0], mean_squares)
    x = np.empty((_BLOCK, LANES), np.float32)
    w = np.empty((_BLOCK, LANES), np.float32)
    found = np.empty((_BLOCK, LANES), np.uint8)
    d = np.empty(LANES, np.float32)
    m = np.empty(LANES, np.float32)
    begin = np.float32(-0.9)
    step = np.float32(0.05)
    for start in range(0, blocks.shape[0], LANES):
        count = _load(blocks, importance, mean_squares, start, x, w)
        affine_search(x, w, 0, _BLOCK, np.int32(highest), begin, step, 36, False, True, d, m, found)
        for k in range(count):
            scale[start + k] = half_bits(d[k])
            minimum[start + k] = half_bits(-m[k])
            for i in range(_BLOCK):
                codes[start + k, i] = found[i, k]
