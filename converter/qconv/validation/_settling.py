"""Which changed vectors are right: those whose change the weights of their block undo.

All vectors of a block are asked about together, so that each weight is decoded once more for them.
Peak memory: one decoded weight and some of its rows, in float32, with their source; for a bias that
changed, all rows of its weight.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from qconv.validation._limits import far, rounding_step
from qconv.validation._rescaled_vectors import Beside, Change, Mismatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from qconv.conversion._slabs import Job
    from qconv.plugin import TensorPlan
    from qconv.validation._matching import Match
    from qconv.validation._results import TensorResult

    Use = tuple[Job, TensorPlan]

#: Rows of a weight that are looked at, about: 4 bits leave 0.2 % of the error. Where many weights
#: may read a norm, such as experts, fewer of each, so that all together have so many values; but
#: never less than the least.
_ROWS, _VALUES, _LEAST = 2048, 1 << 25, 64

_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


class Values(Protocol):
    """Tensors of the artifact and of the source, (rows, columns)."""

    @property
    def match(self) -> Match:
        """The artifact beside its plan."""
        ...

    def found(self, job: Job, plan: TensorPlan) -> torch.Tensor:
        """As decoded, float32."""
        ...

    def expected(self, job: Job, plan: TensorPlan, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` as the source has them."""
        ...


def settled(
    results: Sequence[TensorResult], jobs: Sequence[Use], values: Values
) -> list[TensorResult]:
    """The results; a changed vector is a wrong one unless weights of its block undo the change.

    jobs: of every tensor that was decoded
    """
    there = {use[1].name: use for use in jobs}
    blocks: dict[str | None, list[Use]] = defaultdict(list)
    for each in results:
        if each.rescaled and _is_vector(*there[each.name], values):
            blocks[_block(each.name)].append(there[each.name])
    whys: dict[str, Mismatch | None] = {}
    for vectors in blocks.values():
        whys |= _mismatches(vectors, jobs, values)
    return [_answered(each, whys[each.name]) if each.name in whys else each for each in results]


def _is_vector(job: Job, plan: TensorPlan, values: Values) -> bool:
    """Whether it is a norm or a bias, or a matrix of one row that is as exact as those."""
    return job.rows == 1 and (len(plan.shape) == 1 or values.match.grid(plan) is None)


def _answered(result: TensorResult, why: Mismatch | None) -> TensorResult:
    answered = replace(result, limit=None)  # which a rescaling is not held to
    if why is None:
        return answered
    told = f"{far(result.relative_error, result.limit)}: {why.words}"
    if not why.sure:
        return replace(answered, warnings=(*result.warnings, told))
    return replace(result, rescaled=False, faults=(*result.faults, told))


def _mismatches(
    vectors: Sequence[Use], jobs: Sequence[Use], values: Values
) -> Mapping[str, Mismatch | None]:
    """What is wrong with each vector of a block, by name."""
    changes: dict[str, Change] = {}
    uses: dict[str, list[tuple[Change, int]]] = defaultdict(list)
    for job, plan in vectors:
        change = changes[plan.name] = _change(job, plan, values)
        beside = list(near((job, plan), jobs))
        for other, its, own in beside:
            wanted = max(_LEAST, min(_ROWS, _VALUES // (other.columns * len(beside))))
            uses[its.name].append((change, 0 if own else max(1, other.rows // wanted)))
    for job, plan in jobs:
        if plan.name in uses:
            _take(uses[plan.name], job, plan, values)
    return {name: change.mismatch() for name, change in changes.items()}


def _change(job: Job, plan: TensorPlan, values: Values) -> Change:
    """A matrix of one row reads a norm, as others do: its values change as their columns do."""
    found, source = values.found(job, plan)[0], values.expected(job, plan, 0, 1)[0].float()
    step = rounding_step(found, values.match.reader.tensors[plan.name].dtype)
    if len(plan.shape) == 1:
        return Change(found, source, step)
    return Change(source, found, step * (source / found).abs().nan_to_num(1.0))


def _take(uses: Sequence[tuple[Change, int]], job: Job, plan: TensorPlan, values: Values) -> None:
    """Show a weight to the vectors that go with it: every n-th row; all to its bias (n is 0)."""
    found, source = values.found(job, plan), values.expected(job, plan, 0, job.rows)
    grid = values.match.grid(plan)
    for change, every in uses:
        rows = slice(None, None, max(1, every))
        change.take(
            Beside(found=found[rows], source=source[rows].float(), grid=grid, own=not every)
        )


def near(vector: Use, jobs: Sequence[Use]) -> Iterator[tuple[Job, TensorPlan, bool]]:
    """Matrices that go with a vector, and whether it is their bias.

    That is the weight it is the bias of, or those of its block with as many columns.
    """
    job, plan = vector
    stem = plan.name.rpartition(".")[0]
    for other, its in jobs:
        if other.rows > 1 and its.name.rpartition(".")[0] == stem:
            yield other, its, True
            return
    for other, its in jobs:
        fits = other.rows > 1 and other.columns == job.columns
        if fits and _block(its.name) == _block(plan.name):
            yield other, its, False


def _block(name: str) -> str | None:
    number = _NUMBER.search(name)
    return None if number is None else number[1]
