"""llama.cpp's quantizers of 256-value super-blocks, byte for byte: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.

Source of the algorithms: https://github.com/ggml-org/llama.cpp, ``ggml/src/ggml-quants.c``. Kernels
write into arrays the caller made; halves are uint16. ``blocks`` is (n, 256) float32, the rows of a
weight cut into super-blocks; ``importance`` is (super-blocks per row, 256) float32, or has no rows.
64 super-blocks are searched side by side, one sub-block position after another.
"""

# Comparisons are C's, written out: numba's min and max widen integers, and treat NaN and -0 their
# own way.
# ruff: noqa: FURB136

from __future__ import annotations

import numpy as np

from .ggml_search import (
    LANES,
    TINY,
    ZERO,
    affine_search,
    descent_search,
    level,
    nearest,
    positive_search,
    symmetric_search,
)
from .half import half_bits, half_value
from .jit import inner, kernel

_SIZE = 256
_ONE = np.float32(1)
_NONE = np.int32(0)
_BYTE = np.int32(0xFF)


@inner
def _load(blocks, start, x):
    """Fill a tile with super-blocks from ``start`` on; missing lanes are zero."""
    count = min(LANES, blocks.shape[0] - start)
    for k in range(LANES):
        if k < count:
            for c in range(_SIZE):
                x[c, k] = blocks[start + k, c]
        else:
            for c in range(_SIZE):
                x[c, k] = ZERO
    return count


@inner
def _store(codes, start, count, found):
    for k in range(count):
        for c in range(_SIZE):
            codes[start + k, c] = found[c, k]


@inner
def _weigh_by_importance(x, importance, start, factor, w):
    """Weights ``importance * sqrt(factor * mean square of the super-block + x^2)``."""
    sigma = np.empty(LANES, np.float32)
    column = np.empty(LANES, np.int64)
    for k in range(LANES):
        sigma[k] = ZERO
        column[k] = (start + k) % importance.shape[0]
    for c in range(_SIZE):
        for k in range(LANES):
            sigma[k] += x[c, k] * x[c, k]
    for k in range(LANES):
        sigma[k] = factor * sigma[k] / np.float32(_SIZE)
    for c in range(_SIZE):
        for k in range(LANES):
            w[c, k] = np.sqrt(sigma[k] + x[c, k] * x[c, k])
        for k in range(LANES):
            w[c, k] = importance[column[k], c] * w[c, k]


@inner
def _weigh_by_importance_alone(importance, start, w):
    for k in range(LANES):
        column = (start + k) % importance.shape[0]
        for c in range(_SIZE):
            w[c, k] = importance[column, c]


@inner
def _weigh_by_squares(x, w):
    for c in range(_SIZE):
        for k in range(LANES):
            w[c, k] = x[c, k] * x[c, k]


@inner
def _weigh_by_magnitude(x, n, add_rms, w):
    """Weights ``|x|``, plus the root mean square of its sub-block of ``n`` values if asked."""
    rms = np.empty(LANES, np.float32)
    for first in range(0, _SIZE, n):
        for k in range(LANES):
            rms[k] = ZERO
        if add_rms:
            for c in range(first, first + n):
                for k in range(LANES):
                    rms[k] += x[c, k] * x[c, k]
            for k in range(LANES):
                rms[k] = np.sqrt(rms[k] / np.float32(n))
        for c in range(first, first + n):
            for k in range(LANES):
                w[c, k] = rms[k] + abs(x[c, k])


@inner
def _sum_weights(w, n, total):
    """total: (sub-blocks, LANES), each sub-block's weights summed left to right."""
    for j in range(_SIZE // n):
        for k in range(LANES):
            total[j, k] = ZERO
        for c in range(j * n, j * n + n):
            for k in range(LANES):
                total[j, k] += w[c, k]


@inner
def _divide_by_largest(values, highest, clamp, scale, codes):
    """Codes of non-negative values on the scale that maps the largest to ``highest``."""
    subs = values.shape[0]
    top = np.float32(highest)
    for k in range(LANES):
        largest = ZERO
        for j in range(subs):
            largest = values[j, k] if values[j, k] > largest else largest
        inverse = top / largest if largest > ZERO else ZERO
        for j in range(subs):
            code = np.int32(nearest(inverse * values[j, k]) & _BYTE)
            codes[j, k] = highest if clamp and code > highest else code
        scale[k] = largest / top


@inner
def _clamp(codes, highest):
    for j in range(codes.shape[0]):
        for k in range(LANES):
            codes[j, k] = highest if codes[j, k] > highest else codes[j, k]


@inner
def _as_stored_6_bit(codes):
    """What unpacking gives back of eight codes per lane: llama.cpp packs unclamped bytes."""
    for k in range(LANES):
        for j in range(4):
            low = codes[j, k]
            high = codes[j + 4, k]
            codes[j + 4, k] = (high & 15) | ((((high >> 4) | (low >> 6)) & 3) << 4)
            codes[j, k] = low & 63


@inner
def _as_stored_4_bit(scales, minimums):
    """What unpacking gives back of a byte that holds both: llama.cpp packs unclamped bytes."""
    for j in range(scales.shape[0]):
        for k in range(LANES):
            byte = (scales[j, k] | (minimums[j, k] << 4)) & 255
            scales[j, k] = byte & 15
            minimums[j, k] = byte >> 4


@inner
def _round_affine(x, n, highest, d, m, scales, minimums, found):
    """Codes for the stored parameters; where the scale is 0 the search's codes stay."""
    for j in range(_SIZE // n):
        for k in range(LANES):
            dl = d[k] * np.float32(scales[j, k])
            ml = m[k] * np.float32(minimums[j, k])
            if dl == ZERO:
                continue
            for c in range(j * n, j * n + n):
                found[c, k] = level((x[c, k] + ml) / dl, _NONE, highest)


@inner
def _round_symmetric(x, half, d, scales, found):
    """As :func:`_round_affine`, for sub-blocks of 16 without minimum."""
    lowest = np.int32(-half)
    highest = np.int32(half - 1)
    for j in range(16):
        for k in range(LANES):
            dl = d[k] * np.float32(scales[j, k])
            if dl == ZERO:
                continue
            for c in range(j * 16, j * 16 + 16):
                found[c, k] = level(x[c, k] / dl, lowest, highest) + half


@inner
def _store_scales(start, count, scale, codes, super_scale, sub_scales):
    """Store super- and sub-scales, and leave in ``scale`` what float16 makes of it."""
    for k in range(count):
        super_scale[start + k] = half_bits(scale[k])
        for j in range(codes.shape[0]):
            sub_scales[start + k, j] = codes[j, k]
    for k in range(LANES):
        scale[k] = half_value(scale[k])


@kernel
def affine(blocks, importance, bits, super_scale, super_minimum, sub_scales, sub_minimums, codes):
    """Q2_K, Q4_K and Q5_K: ``bits`` says which.

    super_scale, super_minimum: (n,) uint16 · sub_scales, sub_minimums: (n, sub-blocks) uint8
    codes: (n, 256) uint8
    """
    weighted = importance.shape[0] > 0
    n = 16 if bits == 2 else 32
    subs = _SIZE // n
    highest = np.int32((1 << bits) - 1)
    sub_highest = np.int32(15 if bits == 2 else 63)
    begin = np.float32(-0.9 if weighted else (-1.0 if bits == 4 else -0.5))
    step = np.float32(0.05 if weighted else 0.1)
    steps = 36 if weighted else (20 if bits == 4 else 15)
    absolute = bits == 2 and not weighted

    x = np.empty((_SIZE, LANES), np.float32)
    w = np.empty((_SIZE, LANES), np.float32)
    found = np.empty((_SIZE, LANES), np.uint8)
    scale = np.empty((subs, LANES), np.float32)
    minimum = np.empty((subs, LANES), np.float32)
    total = np.empty((subs, LANES), np.float32)
    sc = np.empty((subs, LANES), np.int32)
    mc = np.empty((subs, LANES), np.int32)
    d = np.empty(LANES, np.float32)
    m = np.empty(LANES, np.float32)
    for start in range(0, blocks.shape[0], LANES):
        count = _load(blocks, start, x)
        if weighted:
            _weigh_by_importance(x, importance, start, np.float32(1 if bits == 2 else 2), w)
        else:
            _weigh_by_magnitude(x, n, bits != 2, w)
        for j in range(subs):
            affine_search(
                x, w, j * n, n, highest, begin, step, steps, absolute, weighted,
                scale[j], minimum[j], found,
            )  # fmt: skip
        if weighted:
            _sum_weights(w, n, total)
            positive_search(scale, total, subs, sub_highest, d, sc)
            positive_search(minimum, total, subs, sub_highest, m, mc)
        else:
            _divide_by_largest(scale, sub_highest, bits != 2, d, sc)
            _divide_by_largest(minimum, sub_highest, bits != 2, m, mc)
        if bits == 2:
            _as_stored_4_bit(sc, mc)
        else:
            if bits == 5:  # llama.cpp clamps the bytes of Q5_K, but not those of Q4_K
                _clamp(sc, sub_highest)
                _clamp(mc, sub_highest)
            _as_stored_6_bit(sc)
            _as_stored_6_bit(mc)
        _store_scales(start, count, d, sc, super_scale, sub_scales)
        _store_scales(start, count, m, mc, super_minimum, sub_minimums)
        _round_affine(x, n, highest, d, m, sc, mc, found)
        _store(codes, start, count, found)


@inner
def _divide_by_peak(values, lowest, highest, scale, codes):
    """Codes of signed values on the scale that maps the largest magnitude to ``lowest``."""
    for k in range(LANES):
        peak = ZERO
        magnitude = ZERO
        for j in range(16):
            bigger = abs(values[j, k]) > magnitude
            peak = values[j, k] if bigger else peak
            magnitude = abs(values[j, k]) if bigger else magnitude
        inverse = np.float32(lowest) / peak
        for j in range(16):
            codes[j, k] = level(inverse * values[j, k], lowest, highest)
        scale[k] = _ONE / inverse
        if magnitude == ZERO:
            scale[k] = ZERO
            for j in range(16):
                codes[j, k] = lowest


@kernel
def q3_k(blocks, importance, super_scale, sub_scales, codes):
    """Q3_K. super_scale: (n,) uint16 · sub_scales: (n, 16) int8 · codes: (n, 256) uint8."""
    weighted = importance.shape[0] > 0
    x = np.empty((_SIZE, LANES), np.float32)
    w = np.empty((_SIZE, LANES), np.float32)
    found = np.empty((_SIZE, LANES), np.uint8)
    scale = np.empty((16, LANES), np.float32)
    total = np.empty((16, LANES), np.float32)
    sc = np.empty((16, LANES), np.int32)
    d = np.empty(LANES, np.float32)
    for start in range(0, blocks.shape[0], LANES):
        count = _load(blocks, start, x)
        if weighted:
            _weigh_by_importance(x, importance, start, np.float32(2), w)
            for j in range(16):
                symmetric_search(x, w, j * 16, 16, np.int32(4), scale[j], found)
            _sum_weights(w, 16, total)
            symmetric_search(scale, total, 0, 16, np.int32(32), d, sc)
            for j in range(16):
                for k in range(LANES):
                    sc[j, k] -= 32
        else:
            _weigh_by_squares(x, w)
            for j in range(16):
                descent_search(x, w, j * 16, 16, np.int32(4), scale[j], found)
            _divide_by_peak(scale, np.int32(-32), np.int32(31), d, sc)
        for k in range(count):
            super_scale[start + k] = half_bits(d[k])
            for j in range(16):
                sub_scales[start + k, j] = sc[j, k]
        for k in range(LANES):
            d[k] = half_value(d[k])
        _round_symmetric(x, np.int32(4), d, sc, found)
        _store(codes, start, count, found)


@kernel
def q6_k(blocks, importance, super_scale, sub_scales, codes):
    """Q6_K. super_scale: (n,) uint16 · sub_scales: (n, 16) int8 · codes: (n, 256) uint8."""
    x = np.empty((_SIZE, LANES), np.float32)
    w = np.empty((_SIZE, LANES), np.float32)
    found = np.empty((_SIZE, LANES), np.uint8)
    scale = np.empty((16, LANES), np.float32)
    sc = np.empty((16, LANES), np.int32)
    d = np.empty(LANES, np.float32)
    for start in range(0, blocks.shape[0], LANES):
        count = _load(blocks, start, x)
        if importance.shape[0] > 0:
            _weigh_by_importance_alone(importance, start, w)
        else:
            _weigh_by_squares(x, w)
        for j in range(16):
            symmetric_search(x, w, j * 16, 16, np.int32(32), scale[j], found)
        _divide_by_peak(scale, np.int32(-128), np.int32(127), d, sc)
        for k in range(LANES):
            largest = ZERO
            for j in range(16):
                largest = abs(scale[j, k]) if abs(scale[j, k]) > largest else largest
            if largest < TINY:
                d[k] = ZERO
                for j in range(16):
                    sc[j, k] = 0
                for c in range(_SIZE):
                    found[c, k] = 0
        for k in range(count):
            super_scale[start + k] = half_bits(d[k])
            for j in range(16):
                sub_scales[start + k, j] = sc[j, k]
        for k in range(LANES):
            d[k] = half_value(d[k])
        _round_symmetric(x, np.int32(32), d, sc, found)
        _store(codes, start, count, found)
