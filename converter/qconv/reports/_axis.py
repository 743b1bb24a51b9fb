"""Axes: where a value lies on a plot, and which values are named beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A range of values laid over a range of pixels.

    low, high: values at ``start`` and ``end``
    ticks: values to be named, all of them in range
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """The pixel of ``value``, which is moved into the range if it lies outside."""
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def linear_axis(values: Iterable[float], start: float, end: float, *, steps: int = 4) -> Axis:
    """An axis from 0 past the largest value, with about ``steps`` round ticks."""
    highest = max(values, default=0.0) or 1.0
    step = _round_up(highest / steps)
    count = math.ceil(highest / step - 1e-9)
    return Axis(
        low=0.0,
        high=step * count,
        start=start,
        end=end,
        logarithmic=False,
        ticks=tuple(step * tick for tick in range(count + 1)),
    )


def log_axis(values: Iterable[float], start: float, end: float) -> Axis:
    """A logarithmic axis around the positive values; 0 lies at its low end.

    It begins and ends at 1, 2 or 5 times a power of ten, and spans a factor of four at least.
    """
    positive = [value for value in values if value > 0]
    lowest, highest = min(positive, default=0.1), max(positive, default=1.0)
    if highest < 4 * lowest:
        lowest, highest = lowest / 2, highest * 2
    marks = _marks(lowest, highest)
    first = max(place for place, mark in enumerate(marks) if mark <= lowest)
    last = min(place for place, mark in enumerate(marks) if mark >= highest)
    named = marks[first : last + 1]
    decades = [mark for mark in named if _is_decade(mark)]
    return Axis(
        low=named[0],
        high=named[-1],
        start=start,
        end=end,
        logarithmic=True,
        ticks=_thinned(decades if len(decades) > 2 else named),
    )


def _round_up(step: float) -> float:
    """The next of 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(
        factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9)
    )


def _marks(lowest: float, highest: float) -> list[float]:
    """1, 2 and 5 times the powers of ten, from below ``lowest`` to above ``highest``."""
    first, last = math.floor(math.log10(lowest)) - 1, math.ceil(math.log10(highest)) + 1
    return [float(f"{factor}e{power}") for power in range(first, last + 1) for factor in (1, 2, 5)]


def _is_decade(mark: float) -> bool:
    return f"{mark:e}".startswith("1.0000")


def _thinned(ticks: Sequence[float]) -> tuple[float, ...]:
    """Few enough to be read."""
    every = math.ceil(len(ticks) / 7)
    return tuple(ticks[::every])
