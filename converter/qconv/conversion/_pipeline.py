"""The pipeline: slabs flow from the checkpoint through the method and backends to the writers.

Peak memory: per thread one slab as read, in float32, as codes and encoded; never a tensor, unless
the method or the format needs it whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv._version import __version__
from qconv.conversion._ahead import (
    encode_ahead,
    pending_slabs,
    rows_together,
    torch_threads,
    workers,
)
from qconv.conversion._artifact import ArtifactWriter
from qconv.conversion._blockwise import Blockwise, Steps
from qconv.conversion._checked import Unread
from qconv.conversion._notes import Notes
from qconv.conversion._outputs import final_path
from qconv.conversion._partial import partial_nbytes
from qconv.conversion._rounding import ByRounder
from qconv.conversion._slabs import make_jobs
from qconv.conversion._work import Worker
from qconv.errors import NotEnoughResources, QconvError, UsageError
from qconv.planning import check_disk
from qconv.plugin import (
    ArtifactFinished,
    ConversionFailed,
    ConversionFinished,
    ConversionStarted,
    TensorFinished,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from qconv.checkpoint import Checkpoint
    from qconv.conversion._artifact import Artifact
    from qconv.conversion._blockwise import Passes
    from qconv.conversion._checked import Checked
    from qconv.conversion._json import CalibratedJson, ConversionJson
    from qconv.conversion._remembered import Remembered
    from qconv.conversion._slabs import Job
    from qconv.conversion._work import Encoded, Rounding
    from qconv.planning import Plan, TargetPlan
    from qconv.plugin import Event

    Observer = Callable[[Event], None]
    Verify = Callable[[TargetPlan, Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What a conversion wrote.

    seconds: wall time of the work, without planning
    calibration: what statistics were taken from; None when none were
    notes: what showed itself on the way and its user should know
    checked: what was looked at before the artifacts got their names, one of each; or nothing
    """

    plan: Plan
    artifacts: tuple[Artifact, ...]
    seconds: float
    calibration: CalibratedJson | None = None
    notes: tuple[str, ...] = ()
    checked: tuple[Checked, ...] = ()

    def to_json(self) -> ConversionJson:
        """The result as JSON-able data (``schemas/conversion.schema.json``)."""
        return {
            "source": str(self.plan.source),
            "method": self.plan.method,
            "calibration": self.calibration,
            "seconds": self.seconds,
            "warnings": [*self.plan.warnings, *self.notes],
            "artifacts": [artifact.to_json() for artifact in self.artifacts],
            "checked": [each.to_json() for each in self.checked],
        }


def run(
    plan: Plan,
    checkpoint: Checkpoint,
    steps: Steps | Rounding,
    *,
    resume: bool,
    observer: Observer,
    passes: Passes | None = None,
    force: bool = True,
    verify: Verify | None = None,
    remembered: Remembered | None = None,
) -> Conversion:
    """Carry out ``plan``; its outputs must have been checked before.

    steps: of the method chain; or whoever has the codes already, and then there are no ``passes``
    passes: the forward passes that statistics come from; None for a chain that needs none
    force: replace also an output that has appeared since the check
    verify: raises where the whole artifact of a target, at that path, must not be sealed; an
        ``Unread`` where that is not known, and it is kept for a run that goes on without
    remembered: is filled with what rows decode to, for ``verify``

    Raises:
        OutputExists: an output has appeared since the check, and ``force`` is False.
        NotEnoughResources: the disk is or becomes full.
        UnreadableInput: a weight is NaN or infinite, or the source changed under way.
        GateFailed: an expert saw fewer calibration tokens than asked for.
        Exception: what ``verify`` raises; the artifacts it does not refuse are sealed before that.
    """
    began = time.monotonic()
    try:
        kept = sum(partial_nbytes(final_path(plan.out, target)) for target in plan.targets)
        check_disk(plan.out, plan.needs.disk_nbytes - kept)
        with contextlib.ExitStack() as stack:
            fingerprint = _Fingerprint(plan, checkpoint, passes)
            writers = [
                stack.enter_context(
                    ArtifactWriter(
                        plan.out, target, fingerprint.of(target), resume=resume, force=force
                    )
                )
                for target in plan.targets
            ]
            notes = Notes()
            artifacts = _Run(
                plan, checkpoint, steps, passes, writers, observer, notes, verify, remembered
            ).carried_out()
    except BaseException as error:
        observer(ConversionFailed(error=error))
        raise
    seconds = time.monotonic() - began
    observer(ConversionFinished(seconds=seconds))
    return Conversion(
        plan=plan,
        artifacts=artifacts,
        seconds=seconds,
        calibration=notes.on(passes),
        notes=(*(passes.warnings if passes else ()), *notes.warnings),
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """One conversion under way."""

    plan: Plan
    checkpoint: Checkpoint
    steps: Steps | Rounding
    passes: Passes | None
    writers: Sequence[ArtifactWriter]
    observer: Observer
    notes: Notes
    verify: Verify | None
    remembered: Remembered | None

    def carried_out(self) -> tuple[Artifact, ...]:
        """Encode and write what is lacking, then seal."""
        if self.remembered is not None:
            self.remembered.begin(self.plan.targets, [writer.done for writer in self.writers])
        self.observer(_started(self.plan, self.writers))
        try:
            with workers(self.plan.threads) as executor:
                for job, encoded in self._encoded(executor):
                    _write(self.plan, self.writers, job, encoded, self.observer)
        except QconvError as error:
            # the same input would fail the same way, but not the same machine
            if not isinstance(error, (NotEnoughResources, UsageError)):
                for writer in self.writers:
                    writer.discard()
            raise
        for writer in self.writers:
            writer.complete()
        refused = self._refused()
        sealed = tuple(
            _seal(writer, self.observer) for writer in self.writers if writer not in refused
        )
        if refused:
            raise _all_of(list(refused.values()), [artifact.target for artifact in sealed])
        return sealed

    def _refused(self) -> dict[ArtifactWriter, Exception]:
        """Artifacts that must not be sealed, and why."""
        refused = {}
        for target, writer in zip(self.plan.targets, self.writers, strict=True):
            error = self._refusal(target, writer)
            if error is not None:
                refused[writer] = error
        return refused

    def _refusal(self, target: TargetPlan, writer: ArtifactWriter) -> Exception | None:
        """Why an artifact must not be sealed: it is thrown away unless that is not certain."""
        if self.verify is None:
            return None
        try:
            self.verify(target, writer.staged)
        except (MemoryError, OSError, NotEnoughResources):
            raise  # another try may do
        except Exception as error:  # noqa: BLE001 - raised again once the others are sealed
            if not isinstance(error, Unread):
                writer.discard()
            return error
        return None

    def _encoded(self, executor: Executor) -> Iterator[tuple[Job, Encoded]]:
        """Everything that some target lacks, encoded."""
        jobs = make_jobs(self.plan.model, self.plan.targets)
        done = [writer.done for writer in self.writers]
        if (
            isinstance(self.steps, Steps)
            and self.passes is not None
            and self.passes.model is not None
        ):
            blockwise = Blockwise(
                plan=self.plan,
                checkpoint=self.checkpoint,
                steps=self.steps,
                passes=self.passes,
                model=self.passes.model,
                done=done,
                executor=executor,
                observer=self.observer,
                notes=self.notes,
                remembered=self.remembered,
            )
            yield from blockwise.encoded(jobs)
            return
        worker = Worker(
            source=self.checkpoint,
            rounding=self._rounding(),
            backends=[target.backend for target in self.plan.targets],
            done=done,
            remembered=self.remembered,
        )
        with torch_threads(1):
            slabs = pending_slabs(self.plan, jobs, done)
            yield from encode_ahead(executor, worker, slabs, self.plan.threads)

    def _rounding(self) -> Rounding:
        """Tensor by tensor, without running the model."""
        if not isinstance(self.steps, Steps):
            return self.steps
        saved = self.passes.saved if self.passes else None
        return ByRounder(rounder=self.steps.rounder, statistics=saved or {})


def _kept_whole(plan: Plan) -> list[str]:
    """Tensors that some target must have whole, so that all targets get them so."""
    jobs = make_jobs(plan.model, plan.targets)
    whole = [job for job in jobs if rows_together(plan, job) == job.rows > 1]
    return sorted(use.name for job in whole for _, use in job.uses)


def _write(
    plan: Plan,
    writers: Sequence[ArtifactWriter],
    job: Job,
    encoded: Encoded,
    observer: Observer,
) -> None:
    for number, slab, buffers in encoded:
        nbytes = writers[number].write(slab, buffers)
        observer(
            TensorFinished(
                target=plan.targets[number].label,
                tensor=slab.tensor,
                weights=(slab.stop - slab.start) * job.columns,
                nbytes=nbytes,
                last=slab.stop == job.rows,
            )
        )


def _all_of(errors: Sequence[Exception], sealed: Sequence[str]) -> Exception:
    """One error for all artifacts that are refused.

    sealed: labels of the others
    """
    first = errors[0]
    if not isinstance(first, QconvError) or (len(errors) == 1 and not sealed):
        return first
    told = "; ".join(str(error) for error in errors)
    error = type(first)(f"{told}; written all the same: {', '.join(sealed) or 'nothing'}")
    error.__cause__ = first
    return error


def _seal(writer: ArtifactWriter, observer: Observer) -> Artifact:
    artifact = writer.seal()
    observer(ArtifactFinished(target=artifact.target, files=artifact.files, nbytes=artifact.nbytes))
    return artifact


def _started(plan: Plan, writers: Sequence[ArtifactWriter]) -> ConversionStarted:
    return ConversionStarted(
        source=str(plan.source),
        targets=tuple(target.label for target in plan.targets),
        tensors=sum(len(target.tensors.tensors) for target in plan.targets),
        weights=sum(target.weights for target in plan.targets),
        nbytes_out=plan.needs.disk_nbytes,
        resumed_nbytes=sum(writer.done_nbytes() for writer in writers),
        warnings=plan.warnings,
    )


class _Fingerprint:
    """What must be equal for a partial artifact to be gone on with.

    The bytes depend on all of it but how tensors are cut into slabs, which the journal records.
    """

    def __init__(self, plan: Plan, checkpoint: Checkpoint, passes: Passes | None) -> None:
        self._facts = [
            [__version__, plan.plugins, plan.method, plan.needs.slab_weights],
            checkpoint.fingerprint(),
            _kept_whole(plan),
            _passes_facts(passes),
        ]

    def of(self, target: TargetPlan) -> str:
        """The fingerprint of one target, as hex."""
        sha256 = hashlib.sha256()
        sha256.update(json.dumps([*self._facts, target.to_json()], sort_keys=True).encode())
        for file in target.layout.files:
            sha256.update(file.header)
        return sha256.hexdigest()


def _passes_facts(passes: Passes | None) -> list[str] | None:
    if passes is None:
        return None
    facts = [passes.digest, str(passes.sequential), str(passes.saved is not None)]
    if passes.model is not None:
        facts += [str(passes.model.device), str(passes.model.dtype)]
    return facts
