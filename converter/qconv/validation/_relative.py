"""Gates between artifacts: better than plain rounding on the same grid, and formats that agree."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qconv.errors import QconvError
from qconv.validation._agreement import ALIKE, Agreement, agreement, differing_grid, grids_of
from qconv.validation._bootstrap import ENOUGH, kl_ratio
from qconv.validation._results import (
    ArtifactResult,
    BaselineResult,
    GateResult,
    Status,
    has_faults,
    worst,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from qconv._sources import OpenedSource
    from qconv.validation._bytes import Progress
    from qconv.validation._matching import Match


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """An artifact after its own validation. match: None where it could not be read."""

    result: ArtifactResult
    match: Match | None


def with_relative_gates(
    artifacts: Sequence[Validated],
    baselines: Sequence[Validated],
    source: OpenedSource,
    gates: Mapping[str, float],
    *,
    progress: Progress,
) -> tuple[ArtifactResult, ...]:
    """The results, each with its gates beside the baseline and the artifacts before it.

    gates: limits asked for, by name
    progress: called with a tensor's name, weights compared and weights to compare
    """
    agreeing = _Agreeing(source, gates.get("agrees"), progress, alone=len(artifacts) == 1)
    return tuple(
        _with(each.result, _beats(each, baselines, gates), *agreeing.gates(each))
        for each in artifacts
    )


def _with(
    result: ArtifactResult,
    beside: tuple[BaselineResult | None, GateResult | None],
    *more: GateResult,
) -> ArtifactResult:
    baseline, beats = beside
    gates = (*(() if beats is None else (beats,)), *more)
    status = worst((result.status, *(each.status for each in gates)))
    return replace(result, baseline=baseline, gates=(*result.gates, *gates), status=status)


def _beats(
    artifact: Validated, baselines: Sequence[Validated], gates: Mapping[str, float]
) -> tuple[BaselineResult | None, GateResult | None]:
    if not baselines or any(each is artifact for each in baselines):
        return None, None
    limit = gates.get("beats", 1.0)
    baseline, reason = _baseline_of(artifact, baselines)
    if baseline is None:
        return None, _gate("beats", None, limit, "unmeasured", reason)
    mine, theirs = artifact.result.logits, baseline.result.logits
    if mine is None or theirs is None:
        silent = artifact.result if mine is None else baseline.result
        return None, _gate("beats", None, limit, "unmeasured", _silence(silent))
    for each, windows in ((artifact, mine.window_kl), (baseline, theirs.window_kl)):
        if not all(map(math.isfinite, windows)):
            reason = f"the KL divergence of {each.result.path} is no finite number in some windows"
            return None, _gate("beats", None, limit, "unmeasured", reason)
    ratio, interval = kl_ratio(mine.window_kl, theirs.window_kl)
    found = BaselineResult(path=baseline.result.path, kl_ratio=ratio, interval=interval)
    return found, _judged(found, gates.get("beats"), len(mine.window_kl))


def _judged(found: BaselineResult, asked: float | None, windows: int) -> GateResult:
    """Significantly better passes, significantly worse fails; strictly, where it was asked for."""
    low, high = found.interval
    status: Status = "pass" if high < 1 else "fail" if low > 1 else "warn"
    if asked is not None:
        status = "pass" if high <= asked else "fail"
    why = (
        f"{found.kl_ratio:.4g} times the KL divergence of {found.path} "
        f"(95 %: {low:.4g} to {high:.4g})"
    )
    if status != "pass" and low < 1 < high and windows < ENOUGH:
        why += f"; that is of {windows} windows, give {ENOUGH} or more to tell (--windows)"
    return _gate("beats", high, 1.0 if asked is None else asked, status, why)


def _baseline_of(
    artifact: Validated, baselines: Sequence[Validated]
) -> tuple[Validated | None, str]:
    """The first baseline on the artifact's grids; or why there is none."""
    reasons = []
    for each in baselines:
        name = each.result.path
        if each.match is None or has_faults(each.result):
            reasons.append(f"the baseline {name} is damaged")
        elif artifact.match is None:
            reasons.append("the artifact cannot be read")
        else:
            mine, theirs = grids_of(artifact.match), grids_of(each.match)
            other = differing_grid(mine, theirs)
            if other is None:
                return each, ""
            stored = mine.get(other, "not there"), theirs.get(other, "not there")
            reasons.append(
                f"the baseline {name} is of another grid: {other!r} is {stored[0]} here, and "
                f"{stored[1]} there; make it for the same target with --method rtn"
            )
    return None, reasons[0]


def _silence(result: ArtifactResult) -> str:
    """Why there are no predictions."""
    whys = [each.why for each in result.gates if each.name == "kl" and each.value is None]
    return whys[0] if whys else "the model has no head that predicts tokens"


@dataclass(slots=True)
class _Agreeing:
    """Artifacts beside those before them: one of each that hold the same values is enough.

    asked: the limit, where one was asked for
    alone: there is a single artifact
    kinds: the first artifact of each grid and method so far
    """

    source: OpenedSource
    asked: float | None
    progress: Progress
    alone: bool
    kinds: list[Validated] = field(default_factory=list)

    def gates(self, artifact: Validated) -> Iterator[GateResult]:
        """At most one gate: beside the first artifact that should be the same."""
        asked, first = self.asked, not self.kinds
        like = self._like(artifact)
        if like is None or not like[1].same:
            self.kinds.append(artifact)
        if like is None:
            if asked is not None and (not first or self.alone):
                reason = "no artifact before it lies on its grids"
                yield _gate("agrees", None, asked, "unmeasured", reason)
            return
        path, told = like
        if asked is not None or told.same:
            limit = asked if asked is not None else 0.0 if told.equal else ALIKE
            status: Status = "pass" if told.worst <= limit else "fail"
            yield _gate("agrees", told.worst, limit, status, _words(path, told))

    def _like(self, artifact: Validated) -> tuple[str, Agreement] | None:
        """The first that is the same, or else the first on its grids; None: there is none."""
        other = None
        for each in self.kinds:
            told = self._agreement(each, artifact)
            if told is not None and told.same:
                return each.result.path, told
            other = other or (None if told is None else (each.result.path, told))
        return other

    def _agreement(self, one: Validated, other: Validated) -> Agreement | None:
        """None where they are not on one grid, or one of them cannot be decoded."""
        if one.match is None or other.match is None:
            return None
        try:
            return agreement(one.match, other.match, self.source, progress=self.progress)
        except (QconvError, ValueError, RuntimeError):  # told as a fault of the tensor
            return None


def _words(path: str, told: Agreement) -> str:
    if not told.same:
        return f"{path} is of another method, or one of them is wrong: first {told.tensor!r}"
    kind = "equal those" if told.equal else "are rounded as those"
    if not told.differing:
        return f"all {told.compared} tensors {kind} of {path}"
    others = told.compared - told.differing
    return f"{others} of {told.compared} tensors {kind} of {path}, but not {told.tensor!r}"


def _gate(name: str, value: float | None, limit: float, status: Status, why: str) -> GateResult:
    return GateResult(name=name, value=value, limit=limit, relation="<=", status=status, why=why)
