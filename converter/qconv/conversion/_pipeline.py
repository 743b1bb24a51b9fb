"""The pipeline: slabs flow from the checkpoint through the method and backends to the writers.

Peak memory: per thread one slab as read, in float32, as codes and encoded; never a tensor, unless
the method or the format needs it whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv._version import __version__
from qconv.conversion._artifact import ArtifactWriter
from qconv.conversion._journal import Slab
from qconv.conversion._outputs import final_path
from qconv.conversion._partial import partial_nbytes
from qconv.conversion._rounding import ByRounder
from qconv.conversion._slabs import make_jobs
from qconv.conversion._work import Worker
from qconv.errors import NotEnoughResources, QconvError, UsageError
from qconv.planning import check_disk, rows_stand_alone
from qconv.plugin import (
    ArtifactFinished,
    ConversionFailed,
    ConversionFinished,
    ConversionStarted,
    TensorFinished,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from qconv.checkpoint import Checkpoint
    from qconv.conversion._artifact import Artifact
    from qconv.conversion._json import ConversionJson
    from qconv.conversion._slabs import Job
    from qconv.conversion._work import Encoded
    from qconv.planning import Plan, TargetPlan
    from qconv.plugin import Event, Rounder

    Observer = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What a conversion wrote. seconds: wall time of the work, without planning."""

    plan: Plan
    artifacts: tuple[Artifact, ...]
    seconds: float

    def to_json(self) -> ConversionJson:
        """The result as JSON-able data (``schemas/conversion.schema.json``)."""
        return {
            "source": str(self.plan.source),
            "method": self.plan.method,
            "seconds": self.seconds,
            "warnings": list(self.plan.warnings),
            "artifacts": [artifact.to_json() for artifact in self.artifacts],
        }


def run(
    plan: Plan,
    checkpoint: Checkpoint,
    rounder: Rounder,
    *,
    resume: bool,
    observer: Observer,
    force: bool = True,
) -> Conversion:
    """Carry out ``plan``; its outputs must have been checked before.

    force: replace also an output that has appeared since the check

    Raises:
        OutputExists: an output has appeared since the check, and ``force`` is False.
        NotEnoughResources: the disk is or becomes full.
        UnreadableInput: a weight is NaN or infinite, or the source changed under way.
    """
    began = time.monotonic()
    try:
        kept = sum(partial_nbytes(final_path(plan.out, target)) for target in plan.targets)
        check_disk(plan.out, plan.needs.disk_nbytes - kept)
        with contextlib.ExitStack() as stack:
            writers = _writers(plan, checkpoint, stack, resume=resume, force=force)
            artifacts = _convert(plan, checkpoint, rounder, writers, observer)
    except BaseException as error:
        observer(ConversionFailed(error=error))
        raise
    seconds = time.monotonic() - began
    observer(ConversionFinished(seconds=seconds))
    return Conversion(plan=plan, artifacts=artifacts, seconds=seconds)


def _writers(
    plan: Plan,
    checkpoint: Checkpoint,
    stack: contextlib.ExitStack,
    *,
    resume: bool,
    force: bool,
) -> list[ArtifactWriter]:
    source, whole = checkpoint.fingerprint(), _kept_whole(plan)
    return [
        stack.enter_context(
            ArtifactWriter(
                plan.out,
                target,
                _fingerprint(source, plan, target, whole),
                resume=resume,
                force=force,
            )
        )
        for target in plan.targets
    ]


def _convert(
    plan: Plan,
    checkpoint: Checkpoint,
    rounder: Rounder,
    writers: Sequence[ArtifactWriter],
    observer: Observer,
) -> tuple[Artifact, ...]:
    worker = Worker(
        source=checkpoint,
        rounding=ByRounder(rounder=rounder),
        backends=[target.backend for target in plan.targets],
        done=[writer.done for writer in writers],
    )
    with _one_torch_thread():
        observer(_started(plan, writers))
        try:
            for job, encoded in _encoded_in_order(plan, worker):
                _write(plan, writers, job, encoded, observer)
        except QconvError as error:
            # the same input would fail the same way, but not the same machine
            if not isinstance(error, (NotEnoughResources, UsageError)):
                for writer in writers:
                    writer.discard()
            raise
        for writer in writers:
            writer.complete()
        return tuple(_seal(writer, observer) for writer in writers)


def _encoded_in_order(plan: Plan, worker: Worker) -> Iterator[tuple[Job, Encoded]]:
    """Encode slabs on all threads, one or two ahead of each, and yield them in order."""
    pool = ThreadPoolExecutor(plan.threads, thread_name_prefix="qconv")
    waiting: deque[tuple[Job, Future[Encoded]]] = deque()
    try:
        for job, start, stop in _pending(plan, worker.done):
            waiting.append((job, pool.submit(worker.encode, job, start, stop)))
            if len(waiting) > 2 * plan.threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pending(plan: Plan, done: Sequence[frozenset[Slab]]) -> Iterator[tuple[Job, int, int]]:
    """Slabs that some target still lacks."""
    for job in make_jobs(plan.model, plan.targets):
        in_slabs = _in_slabs(plan, job)
        for start, stop in job.slabs(plan.needs.slab_weights, in_slabs=in_slabs):
            lacking = (
                Slab(tensor=use.name, start=start, stop=stop) not in done[number]
                for number, use in job.uses
            )
            if any(lacking):
                yield job, start, stop


def _in_slabs(plan: Plan, job: Job) -> bool:
    return plan.streams and all(
        rows_stand_alone(plan.targets[number].layout, use) for number, use in job.uses
    )


def _kept_whole(plan: Plan) -> list[str]:
    """Tensors that some target must have whole, so that all targets get them so."""
    jobs = make_jobs(plan.model, plan.targets)
    return sorted(use.name for job in jobs if not _in_slabs(plan, job) for _, use in job.uses)


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


def _fingerprint(source: str, plan: Plan, target: TargetPlan, whole: Sequence[str]) -> str:
    """What must be equal for a partial artifact to be gone on with.

    The bytes depend on all of it but how tensors are cut into slabs, which the journal records.
    """
    sha256 = hashlib.sha256()
    made_by = [__version__, plan.plugins, plan.method, plan.needs.slab_weights]
    facts = [made_by, source, whole, target.to_json()]
    sha256.update(json.dumps(facts, sort_keys=True).encode())
    for file in target.layout.files:
        sha256.update(file.header)
    return sha256.hexdigest()


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Slabs run side by side, so torch must not split each operation over the same cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
