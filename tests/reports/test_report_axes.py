"""Axes hold all their values, and name a few round ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconv.reports._axis import linear_axis, log_axis

POSITIVE = st.floats(min_value=1e-12, max_value=1e15)


@given(st.lists(POSITIVE, min_size=1, max_size=5))
def test_a_logarithmic_axis_holds_its_values(values):
    axis = log_axis(values, 200, 10)
    assert axis.low <= min(values)
    assert max(values) <= axis.high
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert 2 <= len(axis.ticks) <= 7
    assert all(10 <= axis.at(value) <= 200 for value in values)


@given(st.lists(POSITIVE, min_size=1, max_size=5))
def test_a_linear_axis_holds_its_values(values):
    axis = linear_axis(values, 50, 390)
    assert axis.low == 0
    assert max(values) <= axis.high * (1 + 1e-9)
    assert 3 <= len(axis.ticks) <= 6
    assert axis.ticks[-1] <= axis.high * (1 + 1e-9)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0015, 0.3], (0.001, 0.01, 0.1)),
        ([0.015], (0.005, 0.01, 0.02, 0.05)),
        ([0.0], (0.1, 0.2, 0.5, 1.0)),
    ],
)
def test_ticks_of_a_logarithm_are_round(values, ticks):
    assert log_axis(values, 0, 1).ticks[: len(ticks)] == ticks


def test_ticks_from_zero_are_round():
    assert linear_axis([205e6], 0, 1).ticks == (0, 1e8, 2e8, 3e8)
    assert linear_axis([], 0, 1).ticks == (0, 0.25, 0.5, 0.75, 1.0)


def test_nothing_lies_outside_a_plot():
    axis = log_axis([0.01, 1], 200, 10)
    assert axis.at(0.0) == 200
    assert axis.at(1e9) == 10
