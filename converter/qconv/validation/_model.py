"""Depths ``model`` and ``runtime``: source and artifact run side by side over held-out windows.

Block by block, each on its own hidden states, so that errors add up as they do in use; then the
logits, window by window: those of the decoded weights, and those of the real engine.

Peak memory: two blocks, the hidden states of both, and the logits of one window for the source, the
decoded weights and the engine.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qconv.errors import QconvError, UnreadableInput
from qconv.model import exact_arithmetic, open_model
from qconv.validation._decoded import DecodedArtifact, RoundedInput
from qconv.validation._logits import LogitsSum
from qconv.validation._results import BlockResult, LogitsResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from qconv._sources import OpenedSource
    from qconv.model import BlockModel, Hidden, LiveBlock
    from qconv.validation._bytes import Progress
    from qconv.validation._matching import Match
    from qconv.validation._runtime import Engine

DECODED = "decoded weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFound:
    """What running both gave.

    logits: None where there are none, for ``reason``
    faults: what made it impossible to go on
    headless: the model predicts no tokens, so that there is nothing to measure of predictions
    """

    blocks: tuple[BlockResult, ...] = ()
    logits: LogitsResult | None = None
    faults: tuple[str, ...] = ()
    reason: str | None = None
    headless: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How models are run. device, dtype: as :func:`qconv.model.open_model` takes them."""

    windows: Sequence[torch.Tensor]
    device: str
    dtype: str
    max_ram: int | None


def check_model(
    match: Match,
    source: OpenedSource,
    running: Running,
    *,
    progress: Progress,
    engine: Engine | None = None,
) -> ModelFound:
    """Run source and artifact on all windows.

    progress: called with a stage, steps done and steps to do
    engine: also takes the windows, and is compared with both

    Raises:
        QconvError: the source itself cannot be run.
    """
    teacher = _opened(source, running)
    try:
        artifact = DecodedArtifact(match, source)
        student = _opened(artifact, running)
    except QconvError as error:
        return ModelFound(faults=(f"it cannot be run: {error}",), reason="it cannot be run")
    pair = _Pair(
        teacher=teacher,
        student=student,
        activations=artifact.activations,
        running=running,
        progress=progress,
    )
    with exact_arithmetic(teacher.device):
        return pair.compared(engine)


def _opened(checkpoint: Any, running: Running) -> BlockModel:  # noqa: ANN401 - two kinds of one protocol
    return open_model(
        checkpoint, device=running.device, dtype=running.dtype, max_ram=running.max_ram
    )


class _Broken(Exception):
    """The artifact's weights give states that are not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    teacher: BlockModel
    student: BlockModel
    activations: Mapping[str, RoundedInput]
    running: Running
    progress: Progress

    def compared(self, engine: Engine | None) -> ModelFound:
        blocks: list[BlockResult] = []
        with ExitStack() as stack:
            theirs = stack.enter_context(self.teacher.begin(self.running.windows))
            mine = stack.enter_context(self.student.begin(self.running.windows))
            try:
                for number in range(len(self.teacher.blocks)):
                    blocks.append(self._block(number, theirs, mine))  # noqa: PERF401 - kept on failure
            except _Broken as broken:
                return ModelFound(blocks=tuple(blocks), faults=(str(broken),), reason=str(broken))
            if not self.teacher.is_decoder or self.teacher.head is None:
                reason = "the model has no head that predicts tokens"
                return ModelFound(blocks=tuple(blocks), reason=reason, headless=True)
            logits = self._logits(theirs, mine, engine)
        return ModelFound(blocks=tuple(blocks), logits=logits)

    def _block(self, number: int, theirs: Hidden, mine: Hidden) -> BlockResult:
        name = self.teacher.blocks[number].name
        error = size = 0.0
        with self.teacher.block(number) as source:
            source.advance(theirs)
        with self.student.block(number) as artifact, rounded_inputs(artifact, self.activations):
            try:
                artifact.advance(mine)
            except UnreadableInput as problem:
                raise _Broken(str(problem)) from problem
        for window in range(len(theirs)):
            change = (mine[window] - theirs[window]).double()
            error += float((change * change).sum())
            size += float((theirs[window].double() ** 2).sum())
        self.progress(f"block {name}", number + 1, self._steps)
        return BlockResult(name=name, relative_error=_relative(error, size))

    @property
    def _steps(self) -> int:
        return len(self.teacher.blocks) + len(self.running.windows)

    def _logits(self, theirs: Hidden, mine: Hidden, engine: Engine | None) -> LogitsResult:
        total = LogitsSum()
        rounded = self.activations.get(self.student.head or "")
        hook = None if rounded is None else _rounding(rounded)
        with self.teacher.tail() as reference, self.student.tail(before_head=hook) as decoded:
            for number, window in enumerate(self.running.windows):
                expected = reference.logits(theirs[number])
                found = decoded.logits(mine[number])
                total.add(window, expected, found)
                if engine is not None:
                    engine.take(window, expected, found)
                done = len(self.teacher.blocks) + number + 1
                self.progress("predictions", done, self._steps)
        return total.total(DECODED)


def _relative(error: float, size: float) -> float:
    """The root of the ratio of two sums of squares; of nothing, anything is infinitely off."""
    if size:
        return math.sqrt(error / size)
    return math.inf if error else 0.0


@contextmanager
def rounded_inputs(block: LiveBlock, activations: Mapping[str, RoundedInput]) -> Iterator[None]:
    """Let the linears of a block see their inputs rounded as the runtime rounds them.

    Static scales are the artifact's. Linears inside fused experts see theirs as they are.
    """
    modules = dict(block.module.named_modules())
    handles = []
    for ref in block.linears:
        asked = activations.get(ref.source)
        module = modules.get(ref.parameter.rpartition(".")[0])
        if asked is not None and module is not None and ref.expert is None:
            handles.append(module.register_forward_pre_hook(_rounding(asked)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rounding(asked: RoundedInput) -> Any:  # noqa: ANN401 - a hook as torch calls it
    def rounded(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ANN401
        x = inputs[0]
        static = asked.static
        if static is not None:
            static = {name: value.to(x.device) for name, value in static.items()}
        flat = asked.grid.fake_quantize(x.reshape(-1, x.shape[-1]).float(), static)
        return (flat.reshape(x.shape).to(x.dtype), *inputs[1:])

    return rounded
