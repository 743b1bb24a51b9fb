"""The tables of bitsandbytes' 4-bit types, and its 8-bit type for scales of scales.

NF4: QLoRA (https://arxiv.org/abs/2305.14314, appendix E). FP4: a sign, two bits of exponent, one of
mantissa, over the largest, in the order of bitsandbytes' codes. The dynamic type:
https://arxiv.org/abs/1511.04561. All as ``bitsandbytes.functional`` has them
(https://github.com/bitsandbytes-foundation/bitsandbytes: get_4bit_type, create_dynamic_map).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
#: Twelfths of the values of FP4, by its three bits below the sign.
_FP4_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)


@cache
def values_of(codebook: str) -> tuple[float, ...]:
    """The 16 values of ``nf4`` or ``fp4``, float32, by code. FP4 has zero twice: codes 0 and 8."""
    if codebook == "nf4":
        return _NF4
    positive = tuple(_float32(twelfths / 12.0) for twelfths in _FP4_TWELFTHS)
    return (*positive, *(0.0 - value for value in positive))


@cache
def dynamic_values() -> tuple[float, ...]:
    """The 256 values of the signed dynamic type, float32, by code, ascending.

    For each of seven decades, twice as many values as for the one below it, evenly spread over its
    nine tenths: the middles of as many intervals; both signs; zero, and one.
    """
    positive = [
        _float32(_float32(10.0**exponent) * mean)
        for exponent in range(-6, 1)
        for mean in _middles(2 ** (exponent + 6))
    ]
    return tuple(sorted([0.0, 1.0, *positive, *(-value for value in positive)]))


def _middles(count: int) -> Iterator[float]:
    """The middles of ``count`` intervals between 0.1 and 1, rounded as torch's linspace rounds."""
    low = _float32(0.1)
    step = _float32(_float32(1.0 - low) / count)
    # From either end, each with one rounding: the products are exact in float64.
    ends = [
        _float32(low + step * i if i < (count + 1) // 2 else 1.0 - step * (count - i))
        for i in range(count + 1)
    ]
    for left, right in pairwise(ends):
        yield _float32(_float32(left + right) / 2)


def _float32(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
