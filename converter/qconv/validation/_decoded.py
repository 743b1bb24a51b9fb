"""An artifact seen as a checkpoint: its decoded values under the source's names, rows in order.

So whatever runs the source runs the artifact, whichever backend wrote it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qconv._recent import Recent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    import torch

    from qconv._sources import OpenedSource
    from qconv.conversion._slabs import Job
    from qconv.grids import ActivationGrid, Parameters
    from qconv.plugin import ModelInfo, TensorPlan
    from qconv.validation._matching import Match

#: Decoded tensors in memory: a parameter that is made of two artifact tensors reads both in turn.
_HELD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedInput:
    """How a weight's input is rounded at run time.

    static: what with, where the artifact says so beforehand; None: what fits the input in hand
    """

    grid: ActivationGrid
    static: Parameters | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Where rows of a source tensor are.

    start: of its rows, counted over all sources of the artifact tensor
    """

    job: Job
    plan: TensorPlan
    start: int


class DecodedArtifact:
    """The :class:`qconv.checkpoint.Checkpoint` of an artifact.

    ``model`` is the source's without the tensors that the artifact rightly leaves out (a tied
    head, buffers). Peak memory: two decoded tensors in float32, and the rows in hand.
    """

    def __init__(self, match: Match, source: OpenedSource) -> None:
        self._match, self._source = match, source
        self._parts: dict[str, list[_Part]] = defaultdict(list)
        for job, plan in match.jobs():
            if plan.name in match.reader.tensors:
                self._place(job, plan)
        self._decoded = Recent(self._in_source_order, keep=_HELD)
        self._jobs = {plan.name: (job, plan) for job, plan in match.jobs()}
        there = {n: info for n, info in source.model.tensors.items() if n in self._parts}
        self._model = replace(source.model, tensors=there)

    def _place(self, job: Job, plan: TensorPlan) -> None:
        start = 0
        for name, rows in job.sources:
            self._parts[name].append(_Part(job=job, plan=plan, start=start))
            start += rows

    @property
    def model(self) -> ModelInfo:
        """The source's, as far as the artifact holds it."""
        return self._model

    @property
    def warnings(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def activations(self) -> Mapping[str, RoundedInput]:
        """How inputs of weights are quantized at run time, by source name."""
        static, found = self._match.activation_parameters, {}
        for name, parts in self._parts.items():
            grid = self._match.activation(parts[0].plan)
            if grid is not None:
                stated = None if grid.dynamic else static.get(parts[0].plan.name)
                found[name] = RoundedInput(grid=grid, static=stated)
        return found

    def fingerprint(self) -> str:
        """That of the source: an artifact is opened for reading only."""
        return self._source.fingerprint()

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` of a source tensor as the artifact has them: float32."""
        part = self._parts[name][0]
        rows = self._decoded[part.plan.name]
        return rows[part.start + start : part.start + stop].clone()

    def read_raw(self, name: str, start: int, stop: int) -> torch.Tensor:
        """The bytes of those rows in float32: (rows, bytes per row) uint8."""
        import torch

        return self.read_rows(name, start, stop).contiguous().view(torch.uint8)

    def _in_source_order(self, name: str) -> torch.Tensor:
        """A decoded tensor, its rows (and the values of a vector) where the sources have them."""
        import torch

        job, plan = self._jobs[name]
        found = self._match.reader.read(name).reshape(job.rows, job.columns)
        values: Any = getattr(plan, "value_order", None)  # of vectors, which are one row
        if values is not None:
            columns = torch.tensor(list(values.index))
            found = torch.empty_like(found).index_copy_(1, columns, found)
        if plan.arrangement == "transposed":
            return found.T.contiguous()
        if plan.arrangement == "flat":
            return found.reshape(-1, self._source.model.tensors[plan.sources[0]].shape[-1])
        if plan.row_order is None:
            return found
        rows = torch.tensor(list(plan.row_order.index))
        whole = torch.zeros((sum(rows for _, rows in job.sources), job.columns))
        return whole.index_copy_(0, rows, found)

    def close(self) -> None:
        """Nothing is open but the reader, which is the caller's."""

    def __enter__(self) -> DecodedArtifact:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
