"""Vectors that a transform changed: norms and biases whose change a weight of their block undoes.

A norm is divided by what the columns that read it are multiplied by; a bias goes with the rows of
its weight. A changed vector that no weight answers to is a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from qconv.validation._rescaling import channel_factors, explains

if TYPE_CHECKING:
    import torch

    from qconv.conversion._slabs import Job
    from qconv.plugin import TensorPlan

    #: A tensor of the artifact and its source, (rows, columns) float32 both.
    Both = Callable[[Job, TensorPlan], tuple[torch.Tensor, torch.Tensor]]

#: A change of a vector, relative to its size, that few bits hide in the weights.
_SMALL = 0.25

_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


def is_answered(
    vector: tuple[Job, TensorPlan], jobs: Sequence[tuple[Job, TensorPlan]], both: Both
) -> bool:
    """Whether a weight of the vector's block was rescaled to match.

    both: decodes a tensor and reads its source
    """
    found, source = both(*vector)
    ratios = [found[0] / source[0], (1 + found[0]) / (1 + source[0])]  # norms of two kinds
    for job, plan in _near(vector, jobs):
        weight, original = both(job, plan)
        for dim, inverse in ((0, True), (1, False)):
            if original.shape[1 - dim] != len(found[0]):
                continue
            factor = channel_factors(original, weight, dim)
            if any(explains(ratio, factor, inverse=inverse) for ratio in ratios):
                return True
    return False


def may_be_answered(
    vector: tuple[Job, TensorPlan],
    jobs: Sequence[tuple[Job, TensorPlan]],
    both: Both,
    rescaled: frozenset[str],
) -> bool:
    """Whether nothing proves a changed vector wrong, though no weight answers it in full.

    Rounding to few bits hides small factors: where a weight beside the vector was rescaled, and the
    vector kept its signs and most of its size, its change may be the other half of that.

    rescaled: names of weights that were found so
    """
    if not any(plan.name in rescaled for _, plan in _near(vector, jobs)):
        return False
    found, source = both(*vector)
    if bool((found * source < 0).any()):
        return False
    return bool((found - source).norm() < _SMALL * source.norm())


def _near(
    vector: tuple[Job, TensorPlan], jobs: Sequence[tuple[Job, TensorPlan]]
) -> Iterator[tuple[Job, TensorPlan]]:
    """Matrices of the same block that have as many rows or columns as the vector has values."""
    job, plan = vector
    for other, its in jobs:
        fits = job.columns in (other.rows, other.columns)
        if other.rows > 1 and fits and _block(its.name) == _block(plan.name):
            yield other, its


def _block(name: str) -> str | None:
    number = _NUMBER.search(name)
    return None if number is None else number[1]
