"""Conversion with calibration: block by block, statistics, transforms, rounding, encoding.

Peak memory: one block in float32, as read and as transforms left it, its statistics, the hidden
states of the calibration windows (twice for learned rounding), and what is encoded of one tensor
per thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qconv.conversion._ahead import encode_ahead, pending_slabs, torch_threads
from qconv.conversion._block_source import BlockSource
from qconv.conversion._folding import BlockState, Landing, transformed
from qconv.conversion._journal import Slab
from qconv.conversion._learning import LearningBlock
from qconv.conversion._rounding import Beforehand, ByRounder, Keeping
from qconv.conversion._work import Worker
from qconv.plugin import BlockStarted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from qconv.checkpoint import Checkpoint
    from qconv.conversion._notes import Notes
    from qconv.conversion._remembered import Remembered
    from qconv.conversion._slabs import Job
    from qconv.conversion._work import Encoded, Rounding, RowSource
    from qconv.model import BlockInfo, BlockModel, Hidden, LiveBlock, Topology
    from qconv.planning import Plan
    from qconv.plugin import BlockRounder, Event, Rounder, Transform
    from qconv.statistics import Statistics
    from qconv.tensors import QuantTensor

#: The most that a block's output may move, relative to its size, when scales are folded in: some
#: hundred roundings of the dtype that it is computed in.
_ROUNDINGS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The instances of a method chain.

    rounder: of tensors; where ``block_rounder`` is given, of what that leaves
    gram: a step needs whole Gram matrices, not the diagonal only
    """

    transforms: tuple[Transform, ...] = ()
    rounder: Rounder
    block_rounder: BlockRounder | None = None
    gram: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """What the forward passes run on.

    model: None where saved statistics are all that the chain needs
    windows: 1-D int64 token ids each
    digest: of the windows, part of what decides on the bytes
    sequential: statistics from the blocks as each target has quantized them
    min_tokens_per_expert: fewer for a linear weight are an error
    warnings: what the user should know of the windows
    saved: statistics taken before, by source name of the linear weight: then the model runs only
        to find and check folds, which one window does for
    """

    model: BlockModel | None
    windows: Sequence[torch.Tensor]
    digest: str
    sequential: bool = False
    min_tokens_per_expert: int | None = None
    warnings: tuple[str, ...] = ()
    saved: Mapping[str, Statistics] | None = None


@dataclass(slots=True, kw_only=True)
class _Stream:
    """Hidden states on their way through the blocks, and the targets they are for."""

    targets: frozenset[int]
    hidden: Hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A block, and what targets that land alike want of it.

    inputs, outputs: hidden states before and after the float block; the same object where only
        the outputs are needed
    targets: what learned rounding is to come to: the outputs of the float model, whose blocks
        before this one were not quantized either. Measured on a real model: a block that makes up
        for its predecessors ends at two thirds of the KL of one that follows the float block
    """

    live: LiveBlock
    inputs: Hidden
    outputs: Hidden
    targets: Hidden
    jobs: Sequence[Job]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blockwise:
    """One conversion with calibration.

    done: slabs each target has already
    notes: takes what the user should know of what was met on the way
    remembered: takes down what rows decode to; None: nobody asks
    known: topologies found so far: blocks of a kind share one
    """

    plan: Plan
    checkpoint: Checkpoint
    steps: Steps
    passes: Passes
    model: BlockModel
    done: Sequence[frozenset[Slab]]
    executor: Executor
    observer: Callable[[Event], None]
    notes: Notes
    remembered: Remembered | None = None
    known: list[Topology] = field(default_factory=list)

    def encoded(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Encoded]]:
        """Encode all jobs: blocks in order, then what lies outside of them."""
        model = self.model
        inside, outside = self.by_block(jobs)
        with model.begin(self.passes.windows) as hidden:
            learns = self.passes.sequential and self.steps.block_rounder is not None
            floats = hidden.fork() if learns else None
            streams = self._streams(hidden)
            for info in model.blocks:
                self.observer(
                    BlockStarted(block=info.name, number=info.index, blocks=len(model.blocks))
                )
                if floats is not None:
                    with model.block(info.index) as live, self.running():
                        live.advance(floats)
                for stream in streams:
                    yield from self._block(info, stream, inside.get(info.name, ()), floats)
            statistics = self.head_statistics(streams[0].hidden)
            for stream in streams:
                stream.hidden.close()
            if floats is not None:
                floats.close()
        rounding = ByRounder(rounder=self.steps.rounder, statistics=statistics)
        worker = self._worker(self.checkpoint, rounding, self.done)
        with self._rounding():
            slabs = pending_slabs(self.plan, outside, self.done)
            yield from encode_ahead(self.executor, worker, slabs, self.plan.threads)

    def by_block(self, jobs: Sequence[Job]) -> tuple[dict[str, list[Job]], list[Job]]:
        """Jobs by the block that all their sources are in, and the rest."""
        home = {name: info.name for info in self.model.blocks for name in info.sources}
        inside: dict[str, list[Job]] = {}
        outside: list[Job] = []
        for job in jobs:
            homes = {home.get(name) for name, _ in job.sources}
            block = homes.pop() if len(homes) == 1 else None
            (inside.setdefault(block, []) if block else outside).append(job)
        return inside, outside

    def _streams(self, hidden: Hidden) -> list[_Stream]:
        everyone = range(len(self.plan.targets))
        if not self.passes.sequential:
            return [_Stream(targets=frozenset(everyone), hidden=hidden)]
        return [
            _Stream(targets=frozenset([number]), hidden=hidden if number == 0 else hidden.fork())
            for number in everyone
        ]

    def _block(
        self, info: BlockInfo, stream: _Stream, jobs: Sequence[Job], floats: Hidden | None
    ) -> Iterator[tuple[Job, Encoded]]:
        """Take one stream through one block, encoding what its targets lack of it.

        floats: the float model's hidden states after the block, where they are not the stream's
        """
        wanted = [job for job in (_only(job, stream.targets) for job in jobs) if job.uses]
        if not self.passes.sequential and not any(self._lacks(job) for job in wanted):
            with self.model.block(info.index) as live, self.running():
                live.advance(stream.hidden)
            return
        again = bool(self.steps.transforms) or self.steps.block_rounder is not None
        keep = again or self.passes.sequential  # the inputs are needed once more
        with self.model.block(info.index) as live:
            with self.running():
                statistics, outputs = self._run(live, stream, keep=keep)
            self.notes.take(statistics, self.passes.min_tokens_per_expert)
            start = BlockState(name=info.name, parameters=live.parameters(), statistics=statistics)
            for group in groups(wanted, apart=again):
                work = Work(
                    live=live,
                    inputs=stream.hidden,
                    outputs=outputs,
                    targets=outputs if floats is None else floats,
                    jobs=group,
                )
                yield from self._group(work, start)
            if self.passes.sequential:
                outputs.close()
            elif keep:
                stream.hidden.close()
                stream.hidden = outputs

    def _run(
        self, live: LiveBlock, stream: _Stream, *, keep: bool
    ) -> tuple[Mapping[str, Statistics], Hidden]:
        """Statistics of the block's linear inputs, and its outputs.

        keep: leave the inputs as they are
        """
        if self.passes.saved is None:
            return live.collect(stream.hidden, gram=self.steps.gram, replace=not keep)
        saved = self.passes.saved
        outputs = live.advance(stream.hidden, into=stream.hidden.empty_like() if keep else None)
        names = sorted({ref.source for ref in live.linears} & set(saved))
        return {name: saved[name] for name in names}, outputs

    def _group(self, work: Work, start: BlockState) -> Iterator[tuple[Job, Encoded]]:
        """Carry out the chain for targets that get the same values of this block."""
        live = work.live
        state = self.transformed(work, start)
        tensors = {**live.tensors, **live.sources(state.parameters, state.changed)}
        source = BlockSource(
            checkpoint=self.checkpoint,
            tensors=tensors,
            changed=frozenset(name for name in tensors if tensors[name] is not live.tensors[name]),
        )
        rounder = ByRounder(rounder=self.steps.rounder, statistics=state.statistics)
        rounding: Rounding = rounder
        if self.steps.block_rounder is not None:
            rounding = Beforehand(rounded=self._learned(work, state, tensors), otherwise=rounder)
        if not self.passes.sequential:
            yield from self._encode(work.jobs, source, rounding)
            return
        kept: dict[str, torch.Tensor] = {}
        yield from self._encode(
            work.jobs, source, Keeping(rounding=rounding, kept=kept), lacking_only=False
        )
        flipped = {ref.source for ref in live.linears if ref.transposed}
        decoded = {name: value.t() if name in flipped else value for name, value in kept.items()}
        with self.running():
            live.load({**tensors, **decoded})
            live.advance(work.inputs)

    def transformed(self, work: Work, state: BlockState) -> BlockState:
        """The block after all transforms, checked to do what it did.

        Raises:
            RuntimeError: it does not.
        """
        if not self.steps.transforms:
            return state
        live, landing = work.live, _landing(work.jobs)
        with self.running():
            live.load(live.tensors)  # an earlier group may have left others
            topology = live.topology(work.inputs, self.known)
            if all(topology is not each for each in self.known):
                self.known.append(topology)
        with self._rounding():
            for step in self.steps.transforms:
                state = transformed(
                    state, step, topology.folds, live.linears, landing, executor=self.executor
                )
        with self.running():
            live.load(live.sources(state.parameters, state.changed))
            _check_composition(work)
        return state

    def _learned(
        self, work: Work, state: BlockState, tensors: Mapping[str, torch.Tensor]
    ) -> Mapping[str, QuantTensor]:
        """What the block rounder makes of all linear weights that land on a grid."""
        if self.steps.block_rounder is None:
            return {}
        landing = _landing(work.jobs)
        grids = {
            ref.source: grid
            for ref in work.live.linears
            if (grid := landing.get(ref.source, Landing()).grid) is not None and not ref.transposed
        }
        block = LearningBlock(
            name=state.name,
            weights={name: tensors[name] for name in grids},
            live=work.live,
            inputs=work.inputs,
            targets=work.targets,
        )
        with self.running():
            work.live.load(tensors)
            return self.steps.block_rounder.quantize_block(block, grids, state.statistics)

    def _encode(
        self,
        jobs: Sequence[Job],
        source: BlockSource,
        rounding: Rounding,
        *,
        lacking_only: bool = True,
    ) -> Iterator[tuple[Job, Encoded]]:
        """Encode whole tensors on all threads, and yield what targets lack of them.

        lacking_only: False: also quantize what all targets have, for what comes after
        """
        done = self.done if lacking_only else [frozenset() for _ in self.done]
        worker = self._worker(source, rounding, done)
        wanted = [job for job in jobs if not lacking_only or self._lacks(job)]
        with self._rounding():
            pending = ((job, 0, job.rows) for job in wanted)
            for job, encoded in encode_ahead(self.executor, worker, pending, self._at_once):
                yield job, [each for each in encoded if each[1] not in self.done[each[0]]]

    def _worker(
        self, source: RowSource, rounding: Rounding, done: Sequence[frozenset[Slab]]
    ) -> Worker:
        return Worker(
            source=source,
            rounding=rounding,
            backends=[target.backend for target in self.plan.targets],
            done=done,
            remembered=self.remembered,
        )

    @property
    def _at_once(self) -> int:
        """Tensors worked on ahead of the writer: few on a GPU, one of which keeps it busy."""
        return self.plan.threads if self.model.device.type == "cpu" else 1

    def _lacks(self, job: Job) -> bool:
        return any(
            Slab(tensor=use.name, start=0, stop=job.rows) not in self.done[number]
            for number, use in job.uses
        )

    def head_statistics(self, hidden: Hidden) -> Mapping[str, Statistics]:
        """Of the output projection's input, by its source name."""
        head = self.model.head
        if self.passes.saved is not None:
            return self.passes.saved
        if head is None:
            return {}
        with self.running(), self.model.tail() as tail:
            return {head: tail.statistics(hidden, gram=self.steps.gram)}

    def running(self) -> AbstractContextManager[None]:
        """All cores for one forward pass."""
        return torch_threads(self.plan.threads)

    def _rounding(self) -> AbstractContextManager[None]:
        """One core for each tensor, as several are worked on at once."""
        return torch_threads(1)


def _only(job: Job, targets: frozenset[int]) -> Job:
    """The job for some of its targets."""
    return replace(job, uses=tuple(use for use in job.uses if use[0] in targets))


def groups(jobs: Sequence[Job], *, apart: bool) -> Iterable[Sequence[Job]]:
    """Jobs by the targets whose weights land alike, so that the chain does the same for them.

    apart: False: what is done to a tensor depends on that tensor only, so all go together
    """
    if not apart:
        return [jobs]
    targets = sorted({number for job in jobs for number, _ in job.uses})
    alike: dict[tuple[object, ...], list[int]] = {}
    for number in targets:
        mine = [_only(job, frozenset([number])) for job in jobs]
        key = tuple(
            (name, str(where.grid and where.grid.spec()), where.activation)
            for name, where in sorted(_landing(mine).items())
        )
        alike.setdefault(key, []).append(number)
    return [
        [job for job in (_only(job, frozenset(numbers)) for job in jobs) if job.uses]
        for numbers in alike.values()
    ]


def _landing(jobs: Sequence[Job]) -> dict[str, Landing]:
    """Where every source tensor lands, for targets that agree on it."""
    return {
        name: Landing(grid=use.grid, activation=use.activation)
        for job in jobs
        for _, use in job.uses
        for name in use.sources
    }


def _check_composition(work: Work) -> None:
    import torch

    with torch.no_grad():
        before = work.outputs[0].float()
        after = work.live.run(work.inputs, 0).float()
        moved = float((after - before).norm() / before.norm().clamp(min=1e-30))
    allowed = _ROUNDINGS * torch.finfo(work.live.dtype).eps
    if not moved <= allowed:
        raise RuntimeError(
            f"{work.live.name}: folding scales in changed the block's output by {moved:.2g} of its "
            f"size, more than the {allowed:.2g} that rounding explains"
        )
