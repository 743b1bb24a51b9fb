"""Depth ``bytes``: every tensor accounted for, decoded by an independent reader, and compared.

Peak memory: one tensor in float32, what its reader takes to decode it, and slabs of the source;
for a tensor that a method rescaled, its source in float32, too; for a norm, some rows of one of
those beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from qconv._words import first_of
from qconv.conversion._ahead import torch_threads
from qconv.conversion._work import Rows
from qconv.errors import QconvError
from qconv.planning import matrix_shape
from qconv.validation._comparison import Comparison, compare, no_better_than_zeros
from qconv.validation._exact import not_planned
from qconv.validation._likeness import ROWS, whose_values
from qconv.validation._limits import (
    BEYOND_ROUNDING,
    error_of_bits,
    far,
    float_limit,
    rounding_error,
    sampled_rows,
    underflow,
)
from qconv.validation._rescaling import rescaled
from qconv.validation._results import TensorResult
from qconv.validation._settling import settled
from qconv.validation._static_inputs import with_inputs_checked

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from qconv._sources import OpenedSource
    from qconv.conversion._slabs import Job
    from qconv.grids import Grid
    from qconv.plugin import TensorPlan
    from qconv.validation._matching import Match

    Progress = Callable[[str, int, int], None]

#: Columns per block where the grid is not known.
_COLUMNS = 32

#: Names listed in a message; the rest is counted.
_LISTED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesFound:
    """What the bytes of an artifact gave.

    faults, warnings: of the artifact; tensors have their own
    """

    tensors: tuple[TensorResult, ...]
    faults: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def check_bytes(
    match: Match,
    source: OpenedSource,
    *,
    progress: Progress,
) -> BytesFound:
    """Account for every tensor, and compare them with the source.

    progress: called with a tensor's name, weights done and weights to do
    """
    reading = _Reading(match=match, source=source)
    there = match.reader.tensors
    jobs = [(job, plan) for job, plan in match.jobs() if plan.name in there]
    total = sum(there[plan.name].numel for _, plan in jobs)
    results: list[TensorResult] = []
    done = 0
    with torch_threads(1):  # slabs are small: threads would wait for one another more than work
        for job, plan in jobs:
            results.append(reading.checked(job, plan))
            done += there[plan.name].numel
            progress(plan.name, done, total)
        decoded = frozenset(each.name for each in results if each.relative_error is not None)
        jobs = [each for each in jobs if each[1].name in decoded]
        results = settled(results, jobs, reading)
    results = with_inputs_checked(results, match)
    faults, warnings = _unaccounted(match)
    return BytesFound(tensors=tuple(results), faults=faults, warnings=warnings)


def _unaccounted(match: Match) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tensors that are missing, and such as nothing of the source explains: faults and warnings.

    What is there beside all that should be is odd; where something is missing, it may be that.
    """
    there = match.reader.tensors
    planned = {plan.name: plan for plan in match.plans}
    missing = [
        f"{name!r}" + (f" (of {', '.join(plan.sources)})" if plan.sources != (name,) else "")
        for name, plan in planned.items()
        if name not in there
    ]
    extra = [name for name in there if name not in planned]
    if not missing:
        return (), (not_planned(extra),) if extra else ()
    faults = [f"{len(missing)} tensors are missing: {first_of(missing, _LISTED)}"]
    if extra:
        named = first_of([repr(name) for name in extra], _LISTED)
        faults.append(f"{len(extra)} tensors are none of the source's: {named}")
    return tuple(faults), ()


def _described(match: Match, plan: TensorPlan) -> TensorResult:
    """A tensor before it is decoded."""
    info = match.reader.tensors[plan.name]
    grid = match.grid(plan)
    return TensorResult(
        name=plan.name,
        shape=info.shape,
        grid=info.dtype if grid is None else grid.name,
        bits_per_weight=8 * info.nbytes / max(1, info.numel),
    )


def expected_rows(
    source: OpenedSource, job: Job, plan: TensorPlan, start: int, stop: int
) -> torch.Tensor:
    """Rows ``start:stop`` of an artifact's tensor as the source has them, (rows, columns)."""
    import torch

    rows = Rows(source=source, job=job, start=start, stop=stop).stored(plan)
    order: Any = getattr(plan, "value_order", None)  # of vectors, which are one row to the host
    return rows if order is None else rows[:, torch.tensor(list(order.index))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """Artifact and source while tensors are compared."""

    match: Match
    source: OpenedSource

    def checked(self, job: Job, plan: TensorPlan) -> TensorResult:
        """Decode and compare a tensor."""
        described = _described(self.match, plan)
        if described.shape != plan.shape and _squeezed(described.shape) != _squeezed(plan.shape):
            fault = f"its shape is {described.shape}, but the source makes it {plan.shape}"
            return replace(described, faults=(fault,))
        try:
            found = self.found(job, plan)
        except (QconvError, ValueError, RuntimeError) as error:
            return replace(described, faults=(f"it cannot be decoded: {error}",))
        return self._judged(job, plan, described, found)

    def found(self, job: Job, plan: TensorPlan) -> torch.Tensor:
        """A tensor of the artifact as decoded, (rows, columns) float32."""
        return self.match.reader.read(plan.name).reshape(job.rows, job.columns)

    def _judged(
        self, job: Job, plan: TensorPlan, described: TensorResult, found: torch.Tensor
    ) -> TensorResult:
        expected = partial(self.expected, job, plan)
        stored = self.match.reader.tensors[plan.name].dtype
        limit = None if self.match.grid(plan) else float_limit(stored)
        if limit is not None and stored == "F16":
            limit = max(limit, underflow(self._given(job, plan, None)))
        rounding = self._rounding(job, plan) if limit is None else None
        if rounding is not None:
            limit = min(1.0, rounding * BEYOND_ROUNDING)
        judge = _Judge(limit=limit or 0.0, rounding=rounding, columns=self._columns(job, plan))
        comparison = judge.compared(found, expected)
        if rounding is None and judge.limit >= 1:  # all of it is below float16's smallest value
            nothing = (no_better_than_zeros(1.0),)
            comparison = replace(comparison, faults=(), warnings=nothing)
        changed = math.isfinite(comparison.relative_error) and (
            bool(comparison.faults) or comparison.relative_error > judge.limit
        )
        if changed:
            again = self._rescaled(job, plan, found, judge)
            if again is not None:
                return replace(described, rescaled=True, **again)
        faults = list(comparison.faults)
        if comparison.relative_error > judge.limit:
            told = far(comparison.relative_error, judge.limit)
            whose = list(whose_values(found, expected(0, min(job.rows, ROWS)), plan, self.source))
            faults = [told, *whose] if whose else [told, *faults]
        return replace(
            described,
            relative_error=comparison.relative_error,
            cosine=comparison.cosine,
            limit=judge.limit,
            faults=tuple(faults),
            warnings=comparison.warnings,
        )

    def _rescaled(
        self, job: Job, plan: TensorPlan, found: torch.Tensor, judge: _Judge
    ) -> dict[str, Any] | None:
        """What a comparison with the source's channels rescaled gives; None: explains nothing."""
        source = self.expected(job, plan, 0, job.rows).float()
        if job.rows == 1:
            again = compare(found, lambda a, b: source[a:b], judge.columns)
            return _figures(again, judge.limit)
        near = rescaled(source, found)
        if near is None:
            return None
        judge = self._of_rescaled(plan, near, judge)
        again = judge.compared(found, lambda a, b: near[a:b])
        if again.faults or again.relative_error > judge.limit:
            return None
        return _figures(again, judge.limit)

    def _of_rescaled(self, plan: TensorPlan, near: torch.Tensor, judge: _Judge) -> _Judge:
        """What it may be like: rescaled values may lie on their grid less well than they did."""
        grid = self.match.grid(plan)
        if grid is None or judge.rounding is None:
            return judge
        sample = near[sampled_rows(near.shape[0], near.shape[1], grid)]
        rounding = max(judge.rounding, rounding_error(grid, sample))
        return replace(judge, limit=min(1.0, rounding * BEYOND_ROUNDING), rounding=rounding)

    def expected(self, job: Job, plan: TensorPlan, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` of it as the source has them, (rows, columns)."""
        return expected_rows(self.source, job, plan, start, stop)

    def _columns(self, job: Job, plan: TensorPlan) -> int:
        grid = self.match.grid(plan)
        return min(job.columns, _COLUMNS if grid is None else grid.columns(job.columns))

    def _rounding(self, job: Job, plan: TensorPlan) -> float:
        """The relative error of rounding to nearest on the tensor's grid."""
        info = self.match.reader.tensors[plan.name]
        grid = self.match.grid(plan)
        if grid is None:
            return error_of_bits(8 * info.nbytes / max(1, info.numel))
        return rounding_error(grid, self._given(job, plan, grid))

    def _given(self, job: Job, plan: TensorPlan, grid: Grid | None) -> torch.Tensor:
        """Rows of the source to try the tensor's type on: (rows, columns) float32."""
        import torch

        wanted = sampled_rows(job.rows, job.columns, grid)
        if plan.arrangement == "transposed" or len(wanted) == job.rows:
            return self.expected(job, plan, 0, len(wanted)).float()
        rows = [self.expected(job, plan, at, at + 1) for at in wanted]
        return torch.cat(rows).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """What a tensor may be like. rounding: error of rounding to nearest; None for floats."""

    limit: float
    rounding: float | None
    columns: int

    def compared(
        self, found: torch.Tensor, expected: Callable[[int, int], torch.Tensor]
    ) -> Comparison:
        return compare(found, expected, self.columns, rounding=self.rounding)


def _figures(found: Comparison, limit: float) -> dict[str, Any]:
    return {
        "relative_error": found.relative_error,
        "cosine": found.cosine,
        "limit": limit,
        "warnings": found.warnings,
    }


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without outer dimensions of size one, which formats need not keep; see ``matrix_shape``."""
    rows, columns = matrix_shape(shape)
    return (rows, columns)
