"""The proof of a transcoding: the artifact, decoded, has the values of the source, decoded.

Peak memory: one tensor three times in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qconv.conversion._slabs import make_jobs
from qconv.conversion._work import Rows
from qconv.errors import Unsupported

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from qconv.checkpoint import Checkpoint
    from qconv.conversion._slabs import Job
    from qconv.planning import TargetPlan
    from qconv.plugin import ArtifactReader, TensorPlan

#: Bytes per weight of the tensor that is being compared.
BYTES_IN_PROOF = 12


@dataclass(frozen=True, slots=True)
class Proof:
    """Compares artifacts with the source they were made from.

    compared: of each artifact so far, how many tensors were found equal
    """

    checkpoint: Checkpoint
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
        for job in make_jobs(self.checkpoint.model, [target]):
            for _, plan in job.uses:
                if plan.name not in there:
                    raise RuntimeError(f"{target.label}: the artifact lacks tensor {plan.name!r}")
                self._compare(target.label, job, plan, reader)
        self.compared.append(len(target.tensors.tensors))

    def _compare(self, label: str, job: Job, plan: TensorPlan, reader: ArtifactReader) -> None:
        rows = Rows(source=self.checkpoint, job=job, start=0, stop=job.rows)
        expected = rows.stored(plan).float()
        found = reader.read(plan.name)
        if tuple(found.shape) != plan.shape:
            raise RuntimeError(
                f"{label}: tensor {plan.name!r} has shape {tuple(found.shape)} in the artifact, "
                f"not {plan.shape}"
            )
        changed = _first_change(expected, found.float().reshape(expected.shape))
        if not changed:
            return
        if plan.grid is None and plan.dtype != "raw":
            raise Unsupported(
                f"{label}: tensor {plan.name!r}: {changed} as {plan.storage}, and a transcoding "
                "changes no value; choose a format that keeps it as it is, or use qconv convert"
            )
        raise RuntimeError(f"{label}: tensor {plan.name!r}: {changed} in the artifact")


def _first_change(expected: torch.Tensor, found: torch.Tensor) -> str:
    """How many values differ, and the first that does; empty when none does."""
    import torch

    if torch.equal(expected, found):
        return ""
    differ = torch.nonzero((expected != found) & ~(expected.isnan() & found.isnan()))
    if not len(differ):
        return ""
    row, column = differ[0].tolist()
    return (
        f"{len(differ)} of {expected.numel()} values change, the first in row {row}, column "
        f"{column}: {float(expected[row, column])} becomes {float(found[row, column])}"
    )
