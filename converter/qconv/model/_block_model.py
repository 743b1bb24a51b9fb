"""A checkpoint opened for running: its facts, its blocks, and the way through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.engines import resolve_device
from qconv.errors import NotEnoughResources, UsageError
from qconv.model._dtype import resolve_dtype
from qconv.model._hidden import Hidden, Room
from qconv.model._live import LiveBlock
from qconv.model._outside import Outside
from qconv.model._placement import Placement, place_tensors
from qconv.model._recording import Pool, Recorder
from qconv.model._skeleton import Skeleton, build_skeleton
from qconv.model._tail import Tail, until_head
from qconv.model._weights import Weights
from qconv.model._whole import Substitute, materialise_whole

if TYPE_CHECKING:
    import torch

    from qconv.checkpoint import Checkpoint
    from qconv.model._hidden import Arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockInfo:
    """A block, without its weights.

    name: e.g. ``model.layers.3``
    sources: the checkpoint's tensors that fill it, sorted
    nbytes: of its parameters in the model's dtype
    """

    name: str
    index: int
    sources: tuple[str, ...]
    nbytes: int


def open_model(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    max_ram: int | None = None,
    spill: Path | None = None,
) -> BlockModel:
    """Prepare a checkpoint for running block by block; no weight is read yet.

    device: ``auto`` (the first GPU, if any), ``cpu``, ``cuda`` or ``cuda:n``
    dtype: of the arithmetic; ``auto`` is float32 on every device
    max_ram: bytes of memory that may be used; hidden states that do not fit go to a file
    spill: directory of that file; the system's temporary directory when None

    Raises:
        BrokenPlugin: transformers is not installed.
        Unsupported: transformers does not know the architecture, or a tensor has no place.
        UnreadableInput: config and tensors do not belong together.
        NotEnoughResources: one block does not fit into ``max_ram``, or CUDA is absent.
        UsageError: an unknown device or dtype.
    """
    place, kind = resolve_device(device), resolve_dtype(dtype)
    skeleton = build_skeleton(checkpoint.model, kind)
    _buffers_to(skeleton.model, place)
    placement = place_tensors(skeleton, checkpoint.model.tensors)
    return BlockModel(
        checkpoint, skeleton, placement, device=place, dtype=kind, max_ram=max_ram, spill=spill
    )


class BlockModel:
    """The forward pass of a checkpoint, block by block.

    Steady-state memory: one block in ``dtype``, its statistics, and the hidden states of the
    windows (in a file when ``max_ram`` says so). Embeddings and head come and go.

    blocks: in the order they run
    outside: source tensors in no block, sorted; those that transformers does not load are here too
    unused: those of ``outside`` that transformers does not load
    head: source tensor of the output projection, the embedding's when tied; None without a head
    context_length: most tokens of a window; None when the model sets no limit
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        skeleton: Skeleton,
        placement: Placement,
        *,
        device: torch.device,
        dtype: torch.dtype,
        max_ram: int | None,
        spill: Path | None,
    ) -> None:
        self._checkpoint, self._skeleton = checkpoint, skeleton
        self.device, self.dtype, self.is_decoder = device, dtype, skeleton.is_decoder
        self._weights = Weights(checkpoint, placement.pieces, device)
        self._outside = Outside(skeleton.model, skeleton.path, self._weights, device)
        self._recorder = Recorder(skeleton.blocks, skeleton.path)
        self.blocks = _blocks(skeleton, placement)
        inside = {source for block in self.blocks for source in block.sources}
        self.outside = tuple(sorted(set(checkpoint.model.tensors) - inside))
        self.unused = tuple(sorted(placement.unplaced))
        self.head = _head(skeleton, placement)
        self.vocab_size, self.context_length = _limits(skeleton)
        self._max_ram = max_ram
        self._room = Room(max_ram, self._reserve(), spill)

    def begin(self, windows: Sequence[torch.Tensor]) -> Hidden:
        """Embed the windows, and record every block's arguments.

        windows: each (tokens,) int64, of any length up to ``context_length``

        Raises:
            UsageError: no windows, an empty or too long one, or a token beyond the vocabulary.
            Unsupported: the model is no plain chain of blocks.
        """
        import torch

        self._check(windows)
        tokens = torch.unique(torch.cat([window.cpu() for window in windows]))
        pool = Pool()
        arguments: list[tuple[Arguments, ...]] = []
        with torch.no_grad(), self._outside.lent(tokens):
            state, recorded = self._record(windows[0])
            hidden = Hidden(
                [len(window) for window in windows],
                arguments,
                width=state.shape[-1],
                dtype=self.dtype,
                device=self.device,
                room=self._room,
            )
            for number, window in enumerate(windows):
                if number:
                    state, recorded = self._record(window)
                hidden[number] = state[0]
                arguments.append(_shared(pool, recorded))
        return hidden

    def block(self, index: int) -> LiveBlock:
        """A block with its weights read from the checkpoint; use it in a ``with``."""
        info = self.blocks[index]
        return LiveBlock(info.name, index, self._skeleton.blocks[index], self._weights)

    @contextmanager
    def tail(self, before_head: Callable[..., Any] | None = None) -> Iterator[Tail]:
        """Final norm and head, kept until the context ends.

        before_head: called with the head and its inputs, gives those that it takes instead:
            a forward pre-hook of ``torch.nn.Module``
        """
        import torch

        head = self._head_module()
        with ExitStack() as stack:
            stack.enter_context(self._outside.lent(torch.zeros(1, dtype=torch.int64)))
            if before_head is not None and head is not None:
                handle = head.register_forward_pre_hook(before_head)
                stack.callback(handle.remove)
            yield Tail(self._skeleton.model, self._recorder, self.device, head=head)

    def finish(self, hidden: Hidden) -> Iterator[torch.Tensor]:
        """Every window's last hidden states as the head sees them: (tokens, hidden)."""
        with self.tail() as tail:
            for window in range(len(hidden)):
                yield tail.normed(hidden[window])

    def logits(self, state: torch.Tensor) -> torch.Tensor:
        """(tokens, vocab) float32 for one window; for several, use :meth:`tail`.

        state: (tokens, hidden), the last block's output
        """
        with self.tail() as tail:
            return tail.logits(state)

    def whole(self, substitute: Substitute | None = None) -> Any:
        """The transformers model with all its weights, in eval mode, for running it freely.

        Memory: the whole model in its dtype, less the linears that ``substitute`` stands in for:
        it is called with the source tensor of a linear's weight and with its bias.

        Raises:
            NotEnoughResources: it does not fit into ``max_ram`` or the memory that is free.
        """
        return materialise_whole(
            self._skeleton.model, self._weights, self.device, self._max_ram, substitute
        )

    def _record(self, window: torch.Tensor) -> tuple[torch.Tensor, tuple[Arguments, ...]]:
        tokens = window.to(self.device)[None]
        head = self._head_module()
        return self._recorder.record(lambda: until_head(self._skeleton.model, head, tokens))

    def _head_module(self) -> Any:
        return self._skeleton.model.get_output_embeddings() if self.is_decoder else None

    def _check(self, windows: Sequence[torch.Tensor]) -> None:
        if not len(windows):
            raise UsageError("there are no windows to run on; give some calibration text")
        for number, window in enumerate(windows):
            if window.dim() != 1 or not len(window) or window.is_floating_point():
                raise UsageError(
                    f"window {number}: must be token ids, (tokens,) int64 and not empty, not "
                    f"{tuple(window.shape)} {window.dtype}"
                )
            if self.context_length is not None and len(window) > self.context_length:
                raise UsageError(
                    f"window {number}: {len(window)} tokens, but the model's context is "
                    f"{self.context_length}; use shorter windows"
                )
            low, high = int(window.min()), int(window.max())
            if low < 0 or high >= self.vocab_size:
                raise UsageError(
                    f"window {number}: token id {low if low < 0 else high} is not in the model's "
                    f"vocabulary of {self.vocab_size}; the tokenizer is another model's"
                )

    def _reserve(self) -> int:
        """Bytes that the largest block takes: weights, changed weights, and its Gram matrices.

        Raises:
            NotEnoughResources: its weights alone do not fit into ``max_ram``.
        """
        largest = max(self.blocks, key=lambda block: block.nbytes)
        if self._max_ram is not None and largest.nbytes > self._max_ram:
            raise NotEnoughResources(
                f"block {largest.name!r} takes {largest.nbytes} bytes in {self.dtype}, more than "
                f"--max-ram {self._max_ram}; raise it, or use --dtype bfloat16"
            )
        shapes = [self._checkpoint.model.tensors[source].shape for source in largest.sources]
        grams = sum(4 * shape[-1] ** 2 for shape in shapes if len(shape) == 2)
        return 2 * largest.nbytes + grams


def _blocks(skeleton: Skeleton, placement: Placement) -> tuple[BlockInfo, ...]:
    sources: dict[str, set[str]] = {}
    for name, pieces in placement.pieces.items():
        rest = name.removeprefix(skeleton.path + ".")
        if rest != name:
            number = rest.partition(".")[0]
            sources.setdefault(number, set()).update(piece.source for piece in pieces)
    return tuple(
        BlockInfo(
            name=f"{skeleton.path}.{index}",
            index=index,
            sources=tuple(sorted(sources.get(str(index), ()))),
            nbytes=sum(p.numel() * p.dtype.itemsize for p in block.parameters()),
        )
        for index, block in enumerate(skeleton.blocks)
    )


def _shared(pool: Pool, recorded: tuple[Arguments, ...]) -> tuple[Arguments, ...]:
    shared = tuple((pool.shared(args), pool.shared(kwargs)) for args, kwargs in recorded)
    pool.forget()
    return shared


def _head(skeleton: Skeleton, placement: Placement) -> str | None:
    model = skeleton.model
    head: Any = model.get_output_embeddings() if skeleton.is_decoder else None
    for name, module in model.named_modules():
        if module is head and f"{name}.weight" in placement.pieces:
            return placement.pieces[f"{name}.weight"][0].source
    return None


def _limits(skeleton: Skeleton) -> tuple[int, int | None]:
    from torch import nn

    config = skeleton.model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if not isinstance(context, int) or context <= 0:
        return int(config.vocab_size), None
    for name, module in skeleton.model.named_modules():
        # RoBERTa counts positions from after the padding's row of the table
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            context = min(context, module.num_embeddings - skipped)
    return int(config.vocab_size), context


def _buffers_to(model: Any, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
