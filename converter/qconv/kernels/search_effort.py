"""How hard the default search tries, per type: where it starts, how often it refines.

The starts were picked one after another so that each lowers the mean squared error over normal,
Student-t and SmolLM2 weights most, given those before it. Under importance the best rounding lies
farther from the plain one, so there are more of them and they reach farther.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineEffort:
    """For scale and minimum.

    starts: codes that the range spans beyond the highest, and the share of them cut off below;
        none to take the range as it is
    rounds: how often the best is rounded and refitted once more
    """

    highest: int
    starts: tuple[tuple[float, float], ...]
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledEffort:
    """For a scale alone.

    lowest, highest: codes as values
    starts: the code, fractional, that the value of largest magnitude maps to
    """

    lowest: int
    highest: int
    starts: tuple[float, ...]
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineSuperEffort:
    """For the super-scales above sub-blocks.

    length: weights per sub-block; most: largest sub-scale
    minimum_tries, scale_tries: added to ``most`` to give what the largest maps to
    refits: how often everything is rounded and settled once more
    by_magnitude: weigh errors by the weight's magnitude plus the mean around it
    """

    sub: AffineEffort
    length: int
    most: int
    minimum_tries: tuple[float, ...]
    scale_tries: tuple[float, ...]
    refits: int
    by_magnitude: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledSuperEffort:
    """For the super-scale above sub-blocks of 16.

    tries: what the largest sub-scale maps to; refits, by_magnitude: see AffineSuperEffort
    """

    sub: ScaledEffort
    least: int
    most: int
    tries: tuple[float, ...]
    refits: int
    by_magnitude: bool


def affine_effort(grid: str, *, weighted: bool) -> AffineEffort:
    """Q4_1, Q5_1, and the sub-blocks of Q2_K, Q4_K, Q5_K.

    llama.cpp does not search Q4_1 and Q5_1 without importance, and so is fast: there is time for
    the range as it is, no more.
    """
    highest = {"q2_k": 3, "q4_1": 15, "q4_k": 15, "q5_1": 31, "q5_k": 31}[grid]
    if weighted:
        starts = {3: _WEIGHTED_2, 15: _WEIGHTED_4, 31: _WEIGHTED_5}[highest]
        return AffineEffort(highest=highest, starts=starts, rounds=1)
    if grid in ("q4_1", "q5_1"):
        return AffineEffort(highest=highest, starts=(), rounds=0)
    starts = {3: _PLAIN_2, 15: _PLAIN_4, 31: _PLAIN_5}[highest]
    return AffineEffort(highest=highest, starts=starts, rounds=1)


def scaled_effort(grid: str, *, weighted: bool) -> ScaledEffort:
    """Q4_0, Q5_0, and the sub-blocks of Q3_K and Q6_K."""
    size = {"q3_k": 4, "q4_0": 8, "q5_0": 16, "q6_k": 32}[grid]
    plain, far = {
        4: ((-4.2, -3.8, -4.6, -3.2), (-4.3, -5.5, -3.2, -3.8, 4.8, -6.0, -4.8, 6.0)),
        8: ((-8.28, -7.78), (-8.4, -9.53, -7.15, -7.9, -10.9, -6.15, -8.9, -11.9)),
        16: (
            (-16.05, -15.05, -16.55),
            (-16.3, -15.05, -17.3, -14.05, -18.8, -15.8, -13.05, -12.05),
        ),
        32: (
            (-32.1, -31.1, -30.1, -29.1, -28.1, -27.1),
            (-32.1, -30.1, -31.1, -28.1, -29.1, -26.1, -33.1, -27.1),
        ),
    }[size]
    starts = far if weighted else plain
    rounds = 0 if grid in ("q3_k", "q4_0") and not weighted else 1
    return ScaledEffort(lowest=-size, highest=size - 1, starts=starts, rounds=rounds)


def affine_super_effort(grid: str, *, weighted: bool) -> AffineSuperEffort:
    """Q2_K, Q4_K, Q5_K."""
    four_bits = grid == "q2_k"
    return AffineSuperEffort(
        sub=affine_effort(grid, weighted=weighted),
        length=16 if four_bits else 32,
        most=15 if four_bits else 63,
        minimum_tries=(0.0, -1.0, 1.0, -2.0, 2.0, -3.0, 3.0, -4.0),
        scale_tries=(1.0, -1.0, -2.0),
        refits=2,
        by_magnitude=not weighted and grid in _BY_MAGNITUDE,
    )


def scaled_super_effort(grid: str, *, weighted: bool) -> ScaledSuperEffort:
    """Q3_K, Q6_K."""
    bits = 5 if grid == "q3_k" else 7
    half = float(1 << bits)
    return ScaledSuperEffort(
        sub=scaled_effort(grid, weighted=weighted),
        least=-(1 << bits),
        most=(1 << bits) - 1,
        tries=(-half, 1.0 - half, 2.0 - half, 3.0 - half),
        refits=1,
        by_magnitude=not weighted and grid in _BY_MAGNITUDE,
    )


def byte_tries() -> tuple[float, ...]:
    """Q8_0: what the value of largest magnitude maps to."""
    return (127.0, 126.0, 125.0, 124.0, 123.0, 122.0)


_BY_MAGNITUDE = ("q3_k",)
_PLAIN_4 = (
    (0.25, 0.5), (0.5, 1.0), (0.5, 0.0), (-1.0, 1.0), (-0.25, 0.0), (0.25, 0.0), (-0.75, 1.0),
    (-0.75, 0.0),
)  # fmt: skip
_WEIGHTED_4 = (
    (0.5, 0.5), (0.75, 0.0), (0.75, 1.0), (-1.0, 1.0), (-0.25, 0.75), (-1.75, 0.5), (1.75, 0.5),
    (1.5, 0.0), (1.5, 1.0), (0.25, 1.0), (-1.0, 0.25), (0.75, 0.25),
)  # fmt: skip
_PLAIN_5 = (
    (0.25, 0.5), (-1.0, 1.0), (0.5, 1.0), (0.5, 0.0), (-1.75, 0.5), (-0.25, 0.0), (-0.25, 1.0),
    (-0.75, 0.0),
)  # fmt: skip
_WEIGHTED_5 = (
    (0.25, 0.5), (-1.0, 1.0), (0.75, 1.0), (0.5, 0.0), (-1.75, 0.5), (-3.0, 1.0), (-3.75, 0.5),
    (-1.0, 0.25), (1.5, 0.5), (-1.0, 0.75), (1.0, 0.0), (0.25, 1.0),
)  # fmt: skip
_PLAIN_2 = (
    (0.7, 0.5), (0.5, 1.0), (0.5, 0.0), (0.2, 0.75), (0.6, 0.25), (1.0, 0.75), (0.8, 0.0),
)  # fmt: skip
_WEIGHTED_2 = (
    (0.8, 0.5), (0.8, 1.0), (0.7, 0.0), (1.5, 0.0), (0.7, 0.75), (1.6, 1.0), (0.6, 0.25),
    (-0.9, 0.0), (2.0, 0.5), (2.0, 0.25),
)  # fmt: skip
