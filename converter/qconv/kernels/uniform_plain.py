"""The plain fit of a uniform grid, to the largest magnitude, compiled; and rounding with it.

The same float32 operations, in the same order, as :mod:`qconv.grids._uniform_fit`'s in torch, so
both give the same bits; lanes are groups of one row each. :func:`quantize` reads every weight from
memory once, in the dtype it is stored in: 64 groups are scanned for their ends, fitted side by
side, and rounded while they are still in the cache. No fastmath.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .half import half_value
from .jit import inlined, kernel
from .uniform import arrays

__all__ = [
    "ASYMMETRIC",
    "DTYPES",
    "HIGH",
    "INV",
    "KINDS",
    "LANES",
    "LOW",
    "MAX",
    "MIN",
    "NARROW",
    "ROWS",
    "SCALE",
    "STEP_ZERO",
    "SYMMETRIC",
    "Plain",
    "Rounded",
    "clamped",
    "plain",
    "prepare",
    "quantize",
    "rounded",
    "span",
    "stored",
]

#: Groups side by side. Their weights as float32 are half a first-level cache at 64 columns; a
#: search over 32 is slower by an eighth.
LANES = 64

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)

#: Adding and subtracting 1.5 * 2**23 rounds a float32 below 2**22 in magnitude, half to even.
_MAGIC = np.float32(12582912.0)

#: Rows of the scratch array, one value per lane: ends of the weights, the candidate, the fit.
MIN, MAX, SCALE, STEP_ZERO, INV, LOW, HIGH = range(7)
ROWS = 7

#: Kinds of grid.
NARROW, SYMMETRIC, ASYMMETRIC = 0, 1, 2
KINDS = {"narrow": NARROW, "symmetric": SYMMETRIC, "asymmetric": ASYMMETRIC}

#: Dtypes of stored scales, and of weights.
_HALF, _BRAIN, _SINGLE = 0, 1, 2
DTYPES = {"float16": _HALF, "bfloat16": _BRAIN, "float32": _SINGLE}
_SMALLEST_HALF, _LARGEST_HALF = np.float32(2.0**-24), np.float32(65504.0)
_SMALLEST, _LARGEST = np.float32(2.0**-126), np.float32(np.finfo(np.float32).max)
_LARGEST_BRAIN = np.float32(3.3895313892515355e38)
_ROUND_BRAIN, _KEPT_BRAIN = np.uint32(0x7FFF), np.uint32(0xFFFF0000)
_SIGN, _MAGNITUDE = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
_SIXTEEN, _BIT = np.uint32(16), np.uint32(1)

#: Of stored halves: exponent bits, all of them set in infinities and NaNs; the first 13 bits that a
#: float32 has more; and what makes up for the exponents' other bias.
_HALF_MAGNITUDE, _HALF_SIGN, _HALF_INFINITY = (
    np.uint32(0x7FFF),
    np.uint32(0x8000),
    np.uint32(0x7C00),
)
_THIRTEEN = np.uint32(13)
_REBIASED = np.float32(2.0**112)
_INFINITY = np.uint32(0x7F800000)

#: Of keys, which order float32 as integers.
_SIGN_SHIFT, _LOWER_BITS = np.int32(31), np.int32(0x7FFFFFFF)
_FIRST_KEY, _LAST_KEY = np.int32(-0x80000000), np.int32(0x7FFFFFFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """What is fitted.

    kind: ``narrow`` (symmetric, positive scales), ``symmetric`` or ``asymmetric``
    lowest, highest: inclusive range of the codes
    scale_dtype: torch dtype name of stored scales
    """

    kind: str
    lowest: int
    highest: int
    scale_dtype: str


# --- in numba -------------------------------------------------------------------------------------


@inlined
def rounded(value):
    """To the nearest whole number, half to even, below 2**22 in magnitude."""
    return (value + _MAGIC) - _MAGIC


@inlined
def clamped(value, lowest, highest):
    """Between two bounds."""
    return min(max(value, lowest), highest)


@inlined
def stored(scale, dtype):
    """``_uniform_fit.stored_scale``, in float32. NaN gives anything but loses by its score."""
    bits = np.float32(scale).view(np.uint32)
    magnitude = np.uint32(bits & _MAGNITUDE).view(np.float32)
    if dtype == _HALF:
        magnitude = half_value(clamped(magnitude, _SMALLEST_HALF, _LARGEST_HALF))
    elif dtype == _BRAIN:
        wide = np.float32(clamped(magnitude, _SMALLEST, _LARGEST_BRAIN)).view(np.uint32)
        odd = np.uint32(np.uint32(wide >> _SIXTEEN) & _BIT)
        wide = np.uint32(np.uint32(np.uint32(wide + _ROUND_BRAIN) + odd) & _KEPT_BRAIN)
        magnitude = np.uint32(wide).view(np.float32)
    else:
        magnitude = clamped(magnitude, _SMALLEST, _LARGEST)
    sign = np.uint32(bits & _SIGN)
    return np.uint32(np.float32(magnitude).view(np.uint32) | sign).view(np.float32)


@inlined
def span(low_ratio, high_ratio, lowest, highest, dtype, t):
    """A candidate that spans parts of the weights' ends, stretched to hold zero."""
    for lane in range(LANES):
        low = min(t[MIN, lane], _ZERO) * low_ratio
        high = max(t[MAX, lane], _ZERO) * high_ratio
        scale = stored(high / highest - low / highest, dtype)
        t[SCALE, lane] = scale
        t[STEP_ZERO, lane] = clamped(rounded(-low / scale), lowest, highest)


@inlined
def plain(kind, lowest, highest, dtype, t):
    """The fit to the largest magnitude; scale 1 where all weights are zero."""
    if kind == ASYMMETRIC:
        span(_ONE, _ONE, lowest, highest, dtype, t)
    else:
        for lane in range(LANES):
            low = t[MIN, lane]
            high = t[MAX, lane]
            end = high if high > -low else low
            scale = max(high, -low) / highest if kind == NARROW else end / lowest
            t[SCALE, lane] = stored(scale, dtype)
            t[STEP_ZERO, lane] = _ZERO
    for lane in range(LANES):
        empty = (t[MIN, lane] == _ZERO) & (t[MAX, lane] == _ZERO)
        t[SCALE, lane] = _ONE if empty else t[SCALE, lane]


@inlined
def prepare(lowest, highest, t):
    """What steps need, from a candidate's scale and zero-point."""
    for lane in range(LANES):
        t[INV, lane] = _ONE / t[SCALE, lane]
        t[LOW, lane] = lowest - t[STEP_ZERO, lane]
        t[HIGH, lane] = highest - t[STEP_ZERO, lane]


@inlined
def _value(bits, dtype):
    """The float32 value of a weight's bits; what is not finite as a half is infinite or NaN."""
    wide = np.uint32(bits)
    if dtype == _SINGLE:
        return wide.view(np.float32)
    if dtype == _BRAIN:
        return np.uint32(wide << _SIXTEEN).view(np.float32)
    shifted = np.uint32(np.uint32(wide & _HALF_MAGNITUDE) << _THIRTEEN)
    scaled = np.float32(shifted.view(np.float32) * _REBIASED).view(np.uint32)
    infinite = np.uint32(wide & _HALF_INFINITY) == _HALF_INFINITY
    magnitude = np.uint32(_INFINITY if infinite else scaled)
    sign = np.uint32(np.uint32(wide & _HALF_SIGN) << _SIXTEEN)
    return np.uint32(magnitude | sign).view(np.float32)


@inlined
def _key(value):
    """An int32 for every float32, in the same order; a NaN lies beyond the infinity of its sign."""
    bits = np.float32(value).view(np.int32)
    return _flipped(bits)


@inlined
def _flipped(bits):
    """Negative values in order of their magnitude, and back."""
    return np.int32(bits ^ np.int32(np.int32(bits >> _SIGN_SHIFT) & _LOWER_BITS))


@inlined
def _ends(bits, dtype):
    """Keys of the lowest and the highest value: of integers, which are compared side by side."""
    lowest = _LAST_KEY
    highest = _FIRST_KEY
    for i in range(len(bits)):
        key = _key(_value(bits[i], dtype))
        lowest = min(lowest, key)
        highest = max(highest, key)
    return lowest, highest


@kernel
def _quantize(weight, dtype, kind, lowest, highest, scale_dtype, scale, zero, codes):
    groups = len(weight)
    t = np.zeros((ROWS, LANES), np.float32)
    first, last = _LAST_KEY, _FIRST_KEY
    for start in range(0, groups, LANES):
        lanes = min(LANES, groups - start)
        for lane in range(lanes):
            low, high = _ends(weight[start + lane], dtype)
            first = min(first, low)
            last = max(last, high)
            t[MIN, lane] = np.int32(_flipped(low)).view(np.float32)
            t[MAX, lane] = np.int32(_flipped(high)).view(np.float32)
        plain(kind, lowest, highest, scale_dtype, t)
        prepare(lowest, highest, t)
        for lane in range(lanes):
            scale[start + lane] = t[SCALE, lane]
            zero[start + lane] = t[STEP_ZERO, lane]
            _round(weight[start + lane], dtype, t[:, lane], codes[start + lane])
    return np.int32(_flipped(first)).view(np.float32), np.int32(_flipped(last)).view(np.float32)


@inlined
def _round(bits, dtype, fit, codes):
    inverse, low, high, zero = fit[INV], fit[LOW], fit[HIGH], fit[STEP_ZERO]
    for i in range(len(bits)):
        step = rounded(clamped(_value(bits[i], dtype) * inverse, low, high))
        codes[i] = np.int32(step + zero)


# --- called with tensors --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rounded:
    """Weights on the grid.

    scale, zero: (rows, groups) float32
    codes: (rows, in) int8 or uint8
    low, high: ends of all weights; either is infinite or NaN where a weight is not finite
    """

    scale: torch.Tensor
    zero: torch.Tensor
    codes: torch.Tensor
    low: float
    high: float


def quantize(weight: torch.Tensor, groups: int, fit: Plain) -> Rounded:
    """Fit every group of every row plainly, and round it.

    weight: (rows, in) float32, bfloat16 or float16, on the CPU; nothing else is right where a value
        is not finite
    """
    rows, columns = weight.shape
    bits = weight.contiguous().view(torch.uint32 if weight.dtype == torch.float32 else torch.uint16)
    scale = torch.empty((rows, groups))
    zero = torch.empty_like(scale)
    codes = torch.empty(
        (rows, columns), dtype=torch.uint8 if fit.kind == "asymmetric" else torch.int8
    )
    low, high = _quantize(
        *arrays(bits.view(rows * groups, columns // groups)),
        DTYPES[str(weight.dtype).removeprefix("torch.")],
        KINDS[fit.kind],
        np.float32(fit.lowest),
        np.float32(fit.highest),
        DTYPES[fit.scale_dtype],
        *arrays(scale.view(-1), zero.view(-1), codes.view(rows * groups, -1)),
    )
    return Rounded(scale=scale, zero=zero, codes=codes, low=float(low), high=float(high))
