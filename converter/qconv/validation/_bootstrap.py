"""A ratio of two mean divergences over the same windows, and how sure it is.

Windows are drawn again with replacement, the same ones for both (a paired bootstrap), so that what
makes a text hard for either cancels. Percentiles are those of the expanded percentile interval
(Hesterberg, The American Statistician 69(4), 2015, section 4.1), which for few windows is as wide
as Student's t is wider than the normal distribution.
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

#: Of the generator: equal figures, equal intervals.
_SEED = 0


def kl_ratio(
    scored: Sequence[float], baseline: Sequence[float]
) -> tuple[float, tuple[float, float]]:
    """Mean divergence / the baseline's, and its 95 % interval; from nothing to anything for one.

    scored, baseline: nats, of the same windows in the same order
    """
    import numpy as np

    mine, theirs = np.array(scored), np.array(baseline)
    ratio = float(_ratio(mine.sum(), theirs.sum()))
    count = len(mine)
    if count < 2:
        return ratio, (0.0, math.inf)
    drawn = np.random.default_rng(_SEED).integers(0, count, (_RESAMPLES, count))
    ratios = np.sort(_ratio(mine[drawn].sum(1), theirs[drawn].sum(1)))
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * student_t(count - 1))
    at = int(tail * _RESAMPLES)
    return ratio, (float(ratios[at]), float(ratios[-1 - at]))


def _ratio(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Of nothing to nothing, one; of something to nothing, infinite."""
    import numpy as np

    both = np.where((mine == 0) & (theirs == 0), 1.0, mine)
    with np.errstate(divide="ignore"):
        return np.asarray(both / np.where((mine == 0) & (theirs == 0), 1.0, theirs))
