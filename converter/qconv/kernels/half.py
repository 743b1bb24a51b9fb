"""Rounding float32 to float16 inside compiled loops: to nearest, ties to even, as IEEE 754 asks.

numba has no float16 on the CPU, so a half is its 16 bits here, or the float32 of equal value.
"""

from __future__ import annotations

import numpy as np

from .jit import kernel

# float32 bit patterns: sign, magnitude, the smallest normal half (2^-14), and the first magnitude
# that rounds past the largest half (65520), the largest half being 65504.
_SIGN = np.uint32(0x80000000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_SMALLEST_NORMAL = np.uint32(0x38800000)
_OVERFLOW = np.uint32(0x477FF000)
_INFINITY = np.uint32(0x7F800000)
_QUIET_NAN = np.uint32(0x7FC00000)
# A half keeps 10 of 23 mantissa bits.
_ROUND = np.uint32(0xFFF)
_KEPT = np.uint32(0xFFFFE000)
_DROPPED = np.uint32(13)
_ONE = np.uint32(1)
# Exponent bias 127 against 15, at the half's exponent.
_REBIAS = np.uint32((127 - 15) << 10)
# One unit in the last place of 0.5 is 2^-24, the spacing of the subnormal halves.
_SUBNORMAL_ULP = np.float32(0.5)
_SUBNORMAL_ULP_BITS = np.uint32(0x3F000000)


@kernel
def half_value(value):
    """The float32 value of the half nearest to a float32."""
    bits = np.float32(value).view(np.uint32)
    sign = np.uint32(bits & _SIGN)
    magnitude = np.uint32(bits & _MAGNITUDE)
    small = np.uint32(
        np.float32(
            np.float32(np.uint32(magnitude).view(np.float32) + _SUBNORMAL_ULP) - _SUBNORMAL_ULP
        ).view(np.uint32)
    )
    odd = np.uint32(np.uint32(magnitude >> _DROPPED) & _ONE)
    normal = np.uint32(np.uint32(np.uint32(magnitude + _ROUND) + odd) & _KEPT)
    rounded = small if magnitude < _SMALLEST_NORMAL else normal
    rounded = _INFINITY if magnitude >= _OVERFLOW else rounded
    rounded = _QUIET_NAN if magnitude > _INFINITY else rounded
    return np.uint32(rounded | sign).view(np.float32)


@kernel
def half_bits(value):
    """The 16 bits of the half nearest to a float32, as uint16; NaN keeps its sign and is quiet."""
    bits = np.float32(half_value(value)).view(np.uint32)
    sign = np.uint32(np.uint32(bits & _SIGN) >> np.uint32(16))
    magnitude = np.uint32(bits & _MAGNITUDE)
    shifted = np.uint32(
        np.float32(np.uint32(magnitude).view(np.float32) + _SUBNORMAL_ULP).view(np.uint32)
        - _SUBNORMAL_ULP_BITS
    )
    normal = np.uint32(np.uint32(magnitude >> _DROPPED) - _REBIAS)
    half = shifted if magnitude < _SMALLEST_NORMAL else normal
    half = np.uint32(0x7C00) if magnitude == _INFINITY else half
    half = np.uint32(0x7E00) if magnitude > _INFINITY else half
    return np.uint16(half | sign)
