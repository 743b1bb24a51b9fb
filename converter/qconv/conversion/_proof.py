"""The proof of a transcoding: the artifact, decoded, has the values of the source, decoded.

Peak memory: one tensor in float32, what its reader takes to decode it, and a slab of the source.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qconv.conversion._slabs import make_jobs
from qconv.conversion._work import Rows
from qconv.errors import Unsupported
from qconv.plugin import Comparing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from qconv.checkpoint import Checkpoint
    from qconv.conversion._slabs import Job
    from qconv.planning import TargetPlan
    from qconv.plugin import ArtifactReader, Event, TensorPlan

#: Bytes per weight of the tensor that is being compared: float32, and as stored; or, where it is
#: packed, its codes and what is between them and the values.
BYTES_IN_PROOF, BYTES_IN_PROOF_OF_PACKED = 6, 16

#: Weights compared at a time.
_SLAB = 1 << 20


@dataclass(frozen=True, slots=True)
class Proof:
    """Compares artifacts with the source they were made from.

    compared: of each artifact so far, how many tensors were found equal
    """

    checkpoint: Checkpoint
    observer: Callable[[Event], None]
    compared: list[int] = field(default_factory=list)

    def __call__(self, target: TargetPlan, path: Path) -> None:
        """Read the artifact at ``path`` with its backend's reader, and compare every tensor.

        Zeros of either sign are equal, and so are NaNs.

        Raises:
            RuntimeError: a value is not what it was: an error of qconv or of the backend.
            Unsupported: a tensor that was not quantized does not fit the dtype it is cast to.
        """
        reader = target.backend.open(path)
        there = reader.tensors
        jobs = make_jobs(self.checkpoint.model, [target])
        uses = [(job, plan) for job in jobs for _, plan in job.uses]
        for number, (job, plan) in enumerate(uses):
            if plan.name not in there:
                raise RuntimeError(f"{target.label}: the artifact lacks tensor {plan.name!r}")
            self._compare(target.label, job, plan, reader)
            self.observer(Comparing(target=target.label, done=number + 1, tensors=len(uses)))
        self.compared.append(len(uses))

    def _compare(self, label: str, job: Job, plan: TensorPlan, reader: ArtifactReader) -> None:
        found = reader.read(plan.name)
        if tuple(found.shape) != plan.shape:
            raise RuntimeError(
                f"{label}: tensor {plan.name!r} has shape {tuple(found.shape)} in the artifact, "
                f"not {plan.shape}"
            )
        found = found.reshape(job.rows, job.columns)
        for start, stop in job.slabs(_SLAB):
            rows = Rows(source=self.checkpoint, job=job, start=start, stop=stop)
            expected = rows.stored(plan).float()
            change = _first_change(expected, found[start:stop].float(), start)
            if change:
                raise _changed(label, plan, change)


def _changed(label: str, plan: TensorPlan, change: str) -> Exception:
    """What to raise for a tensor with other values: who is at fault hangs on what was planned."""
    if plan.grid is None and plan.dtype != "raw":
        return Unsupported(
            f"{label}: tensor {plan.name!r}: {change} as {plan.storage}, and a transcoding changes "
            "no value; choose a format that keeps it as it is, or use qconv convert"
        )
    return RuntimeError(f"{label}: tensor {plan.name!r}: {change} in the artifact")


def _first_change(expected: torch.Tensor, found: torch.Tensor, start: int) -> str:
    """Which value differs first; empty when none does. start: the first of the rows, for people."""
    import torch

    if torch.equal(expected, found):
        return ""
    differ = torch.nonzero((expected != found) & ~(expected.isnan() & found.isnan()))
    if not len(differ):
        return ""
    row, column = differ[0].tolist()
    return (
        f"row {start + row}, column {column}: {float(expected[row, column])} becomes "
        f"{float(found[row, column])}"
    )
