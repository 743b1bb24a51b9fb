"""A ratio of two mean divergences over the same windows, and how sure it is.

Windows are drawn again with replacement, the same ones for both (a paired bootstrap), so that what
makes a text hard for either cancels. Percentiles are those of the expanded percentile interval
(Hesterberg, The American Statistician 69(4), 2015, section 4.1), which for few windows is as wide
as Student's t is wider than the normal distribution.

Fewer than :data:`ENOUGH` windows are too few to draw from: of equal methods, a quarter of all pairs
of two windows would be told apart. There it is Student's t on the logarithms of the windows'
ratios, which is wide as it should be, and wider where that does not reach the ratio of the means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

from qconv.validation._logits import student_t

if TYPE_CHECKING:
    import numpy as np

#: Resamples: the ends of the interval are within 1 % of its width.
_RESAMPLES = 10_000

#: Windows from which on they are drawn again: of equal methods, 5 % are told apart, as should be.
ENOUGH = 8

#: Of the generator: equal figures, equal intervals.
_SEED = 0


def kl_ratio(
    scored: Sequence[float], baseline: Sequence[float]
) -> tuple[float, tuple[float, float]]:
    """Mean divergence / the baseline's, and its 95 % interval; from nothing to anything for one.

    scored, baseline: nats, finite, of the same windows in the same order
    """
    import numpy as np

    mine, theirs = np.array(scored), np.array(baseline)
    ratio = float(_ratio(mine.sum(), theirs.sum()))
    count = len(mine)
    if count < ENOUGH:
        low, high = _of_few(_ratio(mine, theirs))
        return ratio, (min(low, ratio), max(high, ratio))
    drawn = np.random.default_rng(_SEED).integers(0, count, (_RESAMPLES, count))
    ratios = np.sort(_ratio(mine[drawn].sum(1), theirs[drawn].sum(1)))
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * student_t(count - 1))
    at = int(tail * _RESAMPLES)
    return ratio, (float(ratios[at]), float(ratios[-1 - at]))


def _of_few(ratios: np.ndarray) -> tuple[float, float]:
    """The interval from a few windows' ratios, (windows,): Student's t of their logarithms."""
    import numpy as np

    count = len(ratios)
    if count < 2:
        return 0.0, math.inf
    if (ratios == ratios[0]).all():  # nothing to nothing, or to something, among them
        return float(ratios[0]), float(ratios[0])
    if not (np.isfinite(ratios) & (ratios > 0)).all():
        return 0.0, math.inf
    logs = np.log(ratios)
    error = student_t(count - 1) * float(logs.std(ddof=1)) / math.sqrt(count)
    middle = float(logs.mean())
    return _exp(middle - error), _exp(middle + error)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _ratio(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Of nothing to nothing, one; of something to nothing, infinite."""
    import numpy as np

    both = np.where((mine == 0) & (theirs == 0), 1.0, mine)
    with np.errstate(divide="ignore"):
        return np.asarray(both / np.where((mine == 0) & (theirs == 0), 1.0, theirs))
