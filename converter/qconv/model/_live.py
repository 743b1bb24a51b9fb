"""One block of the model with its weights: runs on hidden states, gives statistics."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput, UsageError
from qconv.model._collect import Collector, names
from qconv.model._exact import exact_gradients
from qconv.model._intercept import Memory, watching
from qconv.model._linears import find_linears

if TYPE_CHECKING:
    import torch
    from torch import nn
    from typing_extensions import Self

    from qconv.model._hidden import Hidden
    from qconv.model._pieces import Piece
    from qconv.model._topology import Topology
    from qconv.model._weights import Weights
    from qconv.statistics import Statistics


class LiveBlock:
    """A block with its parameters. A context manager; several may live at once.

    Memory: the block's parameters in the model's dtype; when that is not float32, also
    ``tensors`` in float32; after :meth:`load`, both the old and the new values.

    name: e.g. ``model.layers.3``
    index: number of the block
    module: the block itself, in eval mode
    tensors: the checkpoint's tensors, float32, as stored; neither :meth:`load` nor anything else
        here changes them
    linears: the linear weights
    """

    def __init__(
        self,
        name: str,
        index: int,
        skeleton: nn.Module,
        weights: Weights,
    ) -> None:
        self.name, self.index = name, index
        self.module = _copy(skeleton)
        self._device = weights.device
        self._pieces = _relative(name, weights)
        self.tensors: Mapping[str, torch.Tensor] = _materialise(
            self.module, name, weights, self._pieces
        )
        self.linears = find_linears(self.module, self._pieces)
        self._own: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights."""
        self.module.to("meta")
        self.tensors = {}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put these values into the module.

        tensors: by source name, any of the block's, in the shape they are stored in; any dtype
            and device; copied

        Raises:
            UsageError: a name or a shape that is not the block's.
        """
        import torch

        self._check(tensors)
        with torch.no_grad():
            for path, pieces in self._pieces.items():
                used = [piece for piece in pieces if piece.source in tensors]
                if not used:
                    continue
                parameter = self._writable(path)
                for piece in used:
                    value = tensors[piece.source].detach()
                    piece.of_parameter(parameter).copy_(piece.of_source(value))

    def run(
        self,
        hidden: Hidden,
        window: int,
        *,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The block's output on a window: (tokens, hidden), in the model's dtype.

        weights: in place of the module's own, by source name, as stored; the output is
            differentiable in them

        Raises:
            UsageError: a weight that is not the block's, or of another shape.
        """
        import torch

        if not weights:
            with torch.no_grad():
                return self._forward(hidden, window, {})
        self._check(weights)
        with exact_gradients(self._device):
            return self._forward(hidden, window, self._overrides(weights))

    def advance(self, hidden: Hidden, *, into: Hidden | None = None) -> Hidden:
        """Run on all windows, writing the outputs over ``hidden``, or into ``into``.

        Raises:
            UnreadableInput: an output is NaN or infinite.
        """
        target = hidden if into is None else into
        for window in range(len(hidden)):
            target[window] = self._checked(hidden, window, self.run(hidden, window))
        return target

    def collect(
        self, hidden: Hidden, *, gram: bool = True, replace: bool = True
    ) -> tuple[dict[str, Statistics], Hidden]:
        """Run on all windows: statistics of every linear's input, and the outputs.

        Statistics are by source name, on the model's device; linears that share an input share
        one object. An expert sees its own tokens only; one that none came to has 0 tokens and no
        Gram matrix. gram: keep the whole Gram matrix, not only its diagonal. replace: the outputs
        replace the states in ``hidden``, which is returned; otherwise they are in a new Hidden.

        Peak memory beyond the block's: one Gram matrix (in, in) float32 per distinct input, and
        the inputs of one window.

        Raises:
            UnreadableInput: an output is NaN or infinite.
        """
        collector = Collector(gram=gram)
        memory = self._memory()
        outputs = hidden if replace else hidden.empty_like()
        for window in range(len(hidden)):
            collector.window(hidden.starts[window])
            with watching(memory, collector.seen):
                output = self.run(hidden, window)
            outputs[window] = self._checked(hidden, window, output)
            collector.end()
            memory.forget()
        return collector.total({ref.source: ref.shape[1] for ref in self.linears}), outputs

    def topology(self, hidden: Hidden, known: Sequence[Topology] = ()) -> Topology:
        """Which linears share an input, and where scales fold in, found by running.

        Runs in float64 on the first tokens of a window. known: topologies of other blocks, to be
        verified here and taken over instead of probing, which takes several times as long.

        Raises:
            Unsupported: the block cannot be run in float64.
        """
        from qconv.model._probe_window import probe_window

        window = max(range(len(hidden)), key=lambda each: min(hidden.lengths[each], 32))
        arguments = hidden.arguments(window, self.index)
        return probe_window(self.module, hidden[window], arguments, known)

    @property
    def dtype(self) -> torch.dtype:
        """What the block computes in."""
        return next(self.module.parameters()).dtype

    def parameters(self) -> dict[str, torch.Tensor]:
        """The module's parameters as the checkpoint has them, float32 by path; not to be modified.

        Memory: nothing new where the model's dtype is float32 and nothing was loaded.
        """
        import torch

        made: dict[str, torch.Tensor] = {}
        for path, pieces in self._pieces.items():
            own = _get(self.module, path)
            if own.dtype == torch.float32 and path not in self._own:
                made[path] = own.detach()
                continue
            made[path] = torch.empty(own.shape, dtype=torch.float32, device=own.device)
            for piece in pieces:
                piece.of_parameter(made[path]).copy_(piece.of_source(self.tensors[piece.source]))
        return made

    def sources(
        self, parameters: Mapping[str, torch.Tensor], changed: Collection[str]
    ) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors that fill the ``changed`` parameters, as stored, float32.

        parameters: by path; only those in ``changed`` are looked at
        """
        made: dict[str, torch.Tensor] = {}
        for path in sorted(changed):
            for piece in self._pieces[path]:
                stored = self.tensors[piece.source]
                if piece.source not in made:
                    made[piece.source] = stored.clone()
                piece.of_source(made[piece.source]).copy_(piece.of_parameter(parameters[path]))
        return made

    def _forward(
        self, hidden: Hidden, window: int, overrides: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        import torch

        args, kwargs = hidden.arguments(window, self.index)
        state = hidden[window].clone()[None]  # some blocks change their input
        result = (
            torch.func.functional_call(self.module, overrides, (state, *args), kwargs)
            if overrides
            else self.module(state, *args, **kwargs)
        )
        output: torch.Tensor = result[0] if isinstance(result, (tuple, list)) else result
        return output[0]

    def _overrides(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameters by path, made of ``weights`` and, where those do not reach, the module's."""
        made: dict[str, torch.Tensor] = {}
        for path, pieces in self._pieces.items():
            used = [piece for piece in pieces if piece.source in weights]
            own = _get(self.module, path)
            for piece in used:
                value = weights[piece.source].to(own)
                if piece.is_whole(own, tuple(value.shape)):
                    made[path] = value
                    continue
                made[path] = made[path] if path in made else own.detach().clone()
                piece.of_parameter(made[path]).copy_(piece.of_source(value))
        return made

    def _writable(self, path: str) -> torch.Tensor:
        """The parameter in memory of its own: ``tensors`` may be views of what it was."""
        own = _get(self.module, path)
        if path not in self._own:
            own = own.detach().clone()
            _put(self.module, path, own)
            self._own.add(path)
        return own

    def _check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, value in tensors.items():
            mine = self.tensors.get(name)
            if mine is None:
                raise UsageError(f"{self.name}: tensor {name!r} is not one of this block")
            if mine.shape != value.shape:
                raise UsageError(
                    f"{self.name}: tensor {name!r} must have its stored shape "
                    f"{tuple(mine.shape)}, not {tuple(value.shape)}"
                )

    def _memory(self) -> Memory:
        linear = {ref.source for ref in self.linears}
        views = [
            (piece.source, piece.of_parameter(_get(self.module, path)))
            for path, pieces in self._pieces.items()
            for piece in pieces
            if piece.source in linear
        ]
        return Memory(views)

    def _checked(self, hidden: Hidden, window: int, output: torch.Tensor) -> torch.Tensor:
        import torch

        if bool(torch.isfinite(output).all()):
            return output
        raise UnreadableInput(self._blame(hidden, window, output.dtype))

    def _blame(self, hidden: Hidden, window: int, dtype: torch.dtype) -> str:
        """Run again to find where the first value is not finite."""
        import torch

        found: list[str] = []

        def seen(sources: tuple[str, ...], x: torch.Tensor, result: torch.Tensor) -> None:
            for what, value in (("input", x), ("output", result)):
                if not found and not bool(torch.isfinite(value).all()):
                    found.append(f"first in the {what} of {names(sources)}")

        with watching(self._memory(), seen):
            self.run(hidden, window)
        where = found[0] if found else "after its last linear weight"
        advice = (
            "float16 ends at 65504: use --dtype bfloat16 or float32"
            if dtype == torch.float16
            else "the weights may be damaged: look at them with qconv inspect, or get them anew"
        )
        return f"{self.name}: window {window}: NaN or infinite hidden states, {where}; {advice}"


def _relative(name: str, weights: Weights) -> dict[str, tuple[Piece, ...]]:
    start = name + "."
    return {
        path.removeprefix(start): pieces
        for path, pieces in weights.pieces.items()
        if path.startswith(start)
    }


def _copy(skeleton: nn.Module) -> nn.Module:
    """A block on meta of its own; what it only refers to (the config) stays shared."""
    shared = {
        id(value): value
        for module in skeleton.modules()
        for name, value in vars(module).items()
        if name == "config"
    }
    return copy.deepcopy(skeleton, dict(shared))


def _materialise(
    module: nn.Module,
    name: str,
    weights: Weights,
    pieces: Mapping[str, tuple[Piece, ...]],
) -> dict[str, torch.Tensor]:
    """Fill the module; the source tensors as float32, views of its parameters where they can be."""
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for path, each in pieces.items():
        value = weights.parameter(f"{name}.{path}", _get(module, path))
        _put(module, path, value)
        for piece in each:
            if value.dtype == torch.float32 and _is_all(piece, weights):
                tensors[piece.source] = piece.of_parameter(value)
            elif piece.source not in tensors:
                tensors[piece.source] = weights.source(piece.source, torch.float32)
    return tensors


def _is_all(piece: Piece, weights: Weights) -> bool:
    return tuple(stop for _, stop in piece.source_box) == weights.shape(piece.source) and not any(
        start for start, _ in piece.source_box
    )


def _get(module: nn.Module, path: str) -> torch.Tensor:
    parent, _, own = path.rpartition(".")
    owner: Any = module.get_submodule(parent)
    value: torch.Tensor = getattr(owner, own)
    return value


def _put(module: nn.Module, path: str, value: torch.Tensor) -> None:
    from torch import nn

    parent, _, own = path.rpartition(".")
    owner = module.get_submodule(parent)
    if own in owner._buffers:
        owner._buffers[own] = value
    else:
        owner._parameters[own] = nn.Parameter(value, requires_grad=False)
