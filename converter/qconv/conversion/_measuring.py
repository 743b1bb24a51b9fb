"""What rounding inputs costs, measured before the plan is final, on a few calibration windows.

A backend that would leave some inputs in float, knowing that, plans a second time. Transforms are
carried out as they will be, so that what SmoothQuant makes easy to round counts as easy.
Peak memory: as the conversion's, with fewer windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qconv.conversion._ahead import workers
from qconv.conversion._blockwise import Blockwise, Passes, Steps, Work, groups
from qconv.conversion._folding import BlockState
from qconv.conversion._notes import Notes
from qconv.conversion._slabs import make_jobs, read_slab

if TYPE_CHECKING:
    import torch

    from qconv.checkpoint import Checkpoint
    from qconv.conversion._slabs import Job
    from qconv.grids import ActivationGrid
    from qconv.model import BlockInfo, BlockModel, Hidden
    from qconv.planning import Plan
    from qconv.plugin import Event
    from qconv.statistics import Statistics

#: Windows that are run: errors are taken on the rows that statistics sample of them.
_WINDOWS = 8

#: Rows of a weight outside the blocks that are measured at once.
_SLAB = 1 << 13

Errors = dict[str, float]


def input_errors(
    plan: Plan,
    checkpoint: Checkpoint,
    steps: Steps,
    passes: Passes,
    *,
    observer: Callable[[Event], None],
) -> tuple[Mapping[str, float], ...]:
    """For each target: by source name of a linear weight, the relative error of its output.

    The root mean square over tokens x of ``|| Qx(x) W^T - x W^T || / || x W^T ||``: ``Qx`` as the
    plan has it. Token by token, since one whose outputs are thousands of times as large as others'
    hides what becomes of all others: a static scale that has room for it leaves them nothing.
    Weights whose inputs are not rounded, and those that no token came through, are left out.
    """
    found: list[Errors] = [{} for _ in plan.targets]
    jobs = [
        job
        for job in make_jobs(plan.model, plan.targets)
        if any(use.activation for _, use in job.uses)
    ]
    if passes.model is None:
        for job in jobs:
            _take(found, [job], _slabs(checkpoint, job), passes.saved or {})
        return tuple(found)
    with workers(plan.threads) as executor:
        blockwise = Blockwise(
            plan=plan,
            checkpoint=checkpoint,
            steps=steps,
            passes=replace(passes, windows=passes.windows[:_WINDOWS], sequential=False),
            model=passes.model,
            done=[frozenset() for _ in plan.targets],
            executor=executor,
            observer=observer,
            notes=Notes(),
        )
        measuring = _Measuring(blockwise=blockwise, model=passes.model, found=found)
        measuring.run(make_jobs(plan.model, plan.targets))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measuring:
    """Takes the blocks one by one. found: the errors so far, of each target."""

    blockwise: Blockwise
    model: BlockModel
    found: list[Errors]

    def run(self, jobs: Sequence[Job]) -> None:
        """Measure the inputs of all weights in blocks, and that of the head."""
        inside, outside = self.blockwise.by_block(jobs)
        with self.model.begin(self.blockwise.passes.windows) as start:
            hidden = start
            for info in self.model.blocks:
                hidden = self._block(info, hidden, inside.get(info.name, ()))
            self._head(hidden, outside)
            hidden.close()

    def _head(self, hidden: Hidden, jobs: Sequence[Job]) -> None:
        names = {name for job in jobs for name, _ in job.sources}
        asked = [job for job in jobs if any(use.activation for _, use in job.uses)]
        if asked and self.model.head in names:
            statistics = self.blockwise.head_statistics(hidden)
            for job in asked:
                _take(self.found, [job], _slabs(self.blockwise.checkpoint, job), statistics)

    def _block(self, info: BlockInfo, hidden: Hidden, jobs: Sequence[Job]) -> Hidden:
        """Measure one block; gives the hidden states after it."""
        steps, saved = self.blockwise.steps, self.blockwise.passes.saved
        with self.model.block(info.index) as live:
            with self.blockwise.running():
                statistics, outputs = live.collect(hidden, gram=steps.gram, replace=False)
            if saved is not None:
                statistics = {name: saved[name] for name in statistics if name in saved}
            start = BlockState(name=info.name, parameters=live.parameters(), statistics=statistics)
            for group in groups(jobs, apart=bool(steps.transforms)):
                work = Work(live=live, inputs=hidden, outputs=outputs, targets=outputs, jobs=group)
                state = self.blockwise.transformed(work, start)
                tensors = {**live.tensors, **live.sources(state.parameters, state.changed)}
                for ref in live.linears:
                    if ref.transposed:
                        tensors[ref.source] = tensors[ref.source].t()
                _take(self.found, group, _whole(tensors), state.statistics)
        hidden.close()
        return outputs


def _take(
    found: list[Errors],
    jobs: Sequence[Job],
    slabs: Callable[[str], Iterable[torch.Tensor]],
    statistics: Mapping[str, Statistics],
) -> None:
    """Measure what some weights' inputs are rounded with. slabs: of the rows of a source tensor."""
    for job in jobs:
        for number, use in job.uses:
            if use.activation is None:
                continue
            for name in use.sources:
                known = statistics.get(name)
                if known is not None and len(known.sample):
                    found[number][name] = _error(slabs(name), use.activation, known)


def _error(
    slabs: Iterable[torch.Tensor], activation: ActivationGrid, statistics: Statistics
) -> float:
    """As :func:`input_errors` has it; tokens that give nothing at all do not count."""
    parts: list[tuple[torch.Tensor, ...]] = []
    for slab in slabs:
        if not parts:
            known = statistics.to(slab.device)
            static = None if activation.dynamic else activation.fit_range(known.low, known.high)
            change = activation.fake_quantize(known.sample, static) - known.sample
        weight = slab.float().t()
        parts.append(tuple((x @ weight).double().square().sum(1) for x in (change, known.sample)))
    if not parts:
        return 0.0
    off, size = (sum(each[1:], start=each[0]) for each in zip(*parts, strict=True))
    counted = ~(size == 0)  # also what is no number
    by_token = off[counted] / size[counted]
    return math.sqrt(float(by_token.mean())) if len(by_token) else 0.0


def _whole(tensors: Mapping[str, torch.Tensor]) -> Callable[[str], list[torch.Tensor]]:
    """Tensors that are at hand, each as one slab."""
    return lambda name: [tensors[name]]


def _slabs(checkpoint: Checkpoint, job: Job) -> Callable[[str], Iterator[torch.Tensor]]:
    """The sources of a job in slabs of rows, (out, in), whichever way they are stored."""
    rows = dict(job.sources)

    def slabs(name: str) -> Iterator[torch.Tensor]:
        if job.arrangement != "rows":  # such a job has one source
            yield read_slab(job, 0, job.rows, checkpoint.read_rows)
            return
        for start in range(0, rows[name], _SLAB):
            yield checkpoint.read_rows(name, start, min(start + _SLAB, rows[name]))

    return slabs
