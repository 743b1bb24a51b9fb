"""Rounding to float16 agrees with numpy's, which is IEEE 754's."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qconv.kernels.half import half_bits, half_value

EDGES = [
    0.0, -0.0, 1.0, -1.0, 65504.0, 65519.996, 65520.0, 1e30, 2.0**-14, 2.0**-24, 2.0**-25,
    np.nextafter(np.float32(2.0**-25), np.float32(1)), 1.5 * 2.0**-24, 1e-30, 1e-42, 1 + 2.0**-11,
    1 + 3 * 2.0**-11, 2.0**-14 - 2.0**-25, np.inf, -np.inf,
]  # fmt: skip


def _expected(value: float) -> np.float16:
    with np.errstate(over="ignore", under="ignore"):
        return np.float32(value).astype(np.float16)


def _check(value: float) -> None:
    value32 = np.float32(value)
    expected = _expected(value)
    assert np.uint16(half_bits(value32)) == expected.view(np.uint16)
    got = np.float32(half_value(value32))
    assert got.view(np.uint32) == expected.astype(np.float32).view(np.uint32)


def test_edges_round_to_nearest_even():
    for edge in EDGES:
        _check(edge)


def test_nan_stays_nan():
    assert np.isnan(half_value(np.float32(np.nan)))
    assert np.isnan(np.uint16(half_bits(np.float32(np.nan))).view(np.float16))


def test_every_half_is_kept():
    for bits in range(0, 0x7C00, 7):
        value = np.uint16(bits).view(np.float16).astype(np.float32)
        assert half_bits(value) == bits


@given(st.integers(min_value=0, max_value=0xFFFFFFFF))
def test_any_float_rounds_as_numpy_does(bits):
    value = np.uint32(bits).view(np.float32)
    if not np.isnan(value):
        _check(float(value))
