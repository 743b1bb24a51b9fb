"""The public plugin API: the hooks, the specs they yield, what methods and backends must be.

A plugin is a module named in the entry-point group ``qconv.plugins``. It implements any of the
hooks in :class:`Hooks` with :data:`hookimpl` and yields frozen specs; the classes behind them load
only when used::

    from qconv.plugin import MethodSpec, hookimpl

    @hookimpl
    def qconv_methods():
        yield MethodSpec(name="rtn", summary="round to nearest", api_version=1, load=_load)

    def _load():
        from ._rtn import Rtn
        return Rtn

This module needs the standard library and pluggy only, so that listing plugins stays fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import pluggy

from qconv._artifacts import ArtifactReader, Runtime
from qconv._events import (
    ArtifactFinished,
    BlockStarted,
    Calibrating,
    Comparing,
    ConversionFailed,
    ConversionFinished,
    ConversionStarted,
    Event,
    TensorFinished,
)
from qconv._methods import Block, BlockRounder, Consumer, Fold, Rounder, Transform

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qconv.grids import ActivationGrid, Grid
    from qconv.tensors import QuantTensor

__all__ = [
    "API_VERSION",
    "Action",
    "Arrangement",
    "ArtifactFinished",
    "ArtifactReader",
    "Backend",
    "BackendSpec",
    "Block",
    "BlockRounder",
    "BlockStarted",
    "Calibrating",
    "Check",
    "CheckSpec",
    "Comparing",
    "Consumer",
    "ConversionFailed",
    "ConversionFinished",
    "ConversionStarted",
    "Dropped",
    "EncodedTensor",
    "Event",
    "FilePlan",
    "Fold",
    "FormatSpec",
    "GraphRunner",
    "Layout",
    "MethodSpec",
    "ModelInfo",
    "Observed",
    "OptionSpec",
    "Place",
    "PlanRequest",
    "Rounder",
    "RowOrder",
    "Runtime",
    "SampleInput",
    "Source",
    "SourceSpec",
    "TensorFinished",
    "TensorInfo",
    "TensorPlan",
    "TensorPlans",
    "Transform",
    "hookimpl",
    "hookspec",
]

#: The version of this API. A spec states the version it was written for; the host refuses others.
API_VERSION = 1

hookspec = pluggy.HookspecMarker("qconv")
hookimpl = pluggy.HookimplMarker("qconv")

#: The container of a source.
Kind = Literal["safetensors", "gguf", "onnx"]

#: How a source tensor becomes the rows and columns of an artifact's. ``rows``: all dimensions but
#: the last are rows; ``transposed``: the columns of these are rows, as of a weight stored
#: ``(in, out)``; ``flat``: all dimensions but the first are columns, as of a convolution's weight.
Arrangement = Literal["rows", "transposed", "flat"]

#: What happens to a tensor. ``fuse`` joins several sources into one; ``generate`` has no source.
Action = Literal["quantize", "copy", "cast", "fuse", "generate"]


# --- what a backend is told -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """A tensor of the source, without its values.

    shape: outermost first, ``(out, in)`` for a linear weight
    dtype: as stored: ``F32 F16 BF16 F64 I64 ...`` or a GGUF block type such as ``Q4_K``
    nbytes: bytes on disk
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int

    @property
    def numel(self) -> int:
        """How many values the tensor holds."""
        total = 1
        for size in self.shape:
            total *= size
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Everything about a source checkpoint but its weights.

    kind: container of the source
    name: short name, the directory's or file's stem; the base of artifact names
    config: ``config.json`` (empty for a GGUF source)
    files: small companion files by file name (``tokenizer.json``, ``generation_config.json``, ...)
    metadata: the container's own key-value pairs; for GGUF :class:`qconv.checkpoint.GgufValue`; for
        ONNX ``graph``: the serialized ModelProto, in which the tensors lie in a file that does not
        exist
    """

    kind: Kind
    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: Mapping[str, bytes]
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What a backend plans from: the model, one of its formats, and the target's options.

    importance: the method fits grids with importance from calibration
    method: names of the chain's steps, first to last: ``("awq", "rtn")``; empty for a transcoding
    held: in a transcoding, the grids that quantized tensors of the source lie on, by name: the
        backend plans these on a grid that holds the same values, wherever its format has one
    read: a tensor of the source, whole, by name, in float32; for small ones whose values the
        format states otherwise than as a tensor. None where no source is open
    input_errors: what rounding inputs does, where an earlier plan asked for it: by source name of
        a linear weight, the relative error of its output. None: not measured
    exact: False: nothing will be written by the plan; memory is predicted by it, so that what is
        slow to find may be off by a part in a hundred, such as the size of a graph
    """

    model: ModelInfo
    format: str
    options: Mapping[str, str] = field(default_factory=dict)
    importance: bool = False
    method: tuple[str, ...] = ()
    held: Mapping[str, Grid] = field(default_factory=dict)
    read: Callable[[str], torch.Tensor] | None = field(default=None, repr=False, compare=False)
    input_errors: Mapping[str, float] | None = None
    exact: bool = True


# --- what a backend answers -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOrder:
    """Which source row each artifact row comes from.

    label: for people, e.g. ``rotary halves interleaved, 9 heads``
    index: the source row (counted over all sources, one after the other) of artifact row ``i``
    """

    label: str
    index: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """One tensor of the artifact.

    name: in the artifact
    sources: source tensors, whose rows follow one another; empty when generated
    shape: in the artifact, outermost first; all but the last dimension count as rows
    storage: the format's name of the type, e.g. ``Q4_K`` or ``F32``
    grid: where quantized values must land; None when not quantized
    dtype: torch dtype name for float storage (``float32``); ``raw`` copies the source's bytes
    reason: why this action and type, for people
    fallback_from: the type the format would have used, had the shape allowed it
    activation: how the runtime quantizes this weight's input; None when it does not
    row_order: None keeps the rows as they come
    arrangement: of the source; other than ``rows`` it must be the only one, in no other order
    values: row-major values of a generated tensor
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    action: Action
    storage: str
    grid: Grid | None = None
    dtype: str | None = None
    reason: str
    fallback_from: str | None = None
    activation: ActivationGrid | None = None
    row_order: RowOrder | None = None
    arrangement: Arrangement = "rows"
    values: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A source tensor that the artifact rightly leaves out, and the rule that says so."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlans:
    """The fate of the source tensors: the artifact's tensors in file order, and what is dropped.

    A source tensor in neither is one the backend has no place for; the host makes it an error.

    asks_input_errors: the plan hangs on what rounding inputs as it says does: where the method
        calibrates, the host measures that and has the backend plan anew
    """

    tensors: tuple[TensorPlan, ...]
    dropped: tuple[Dropped, ...] = ()
    asks_input_errors: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one encoded part of a tensor goes.

    offset: from the start of the file
    nbytes: exact size
    row_nbytes: bytes of one row when rows lie one after the other, so that slabs of rows can be
        written on their own; None when the part must be encoded whole
    rows_together: slabs begin at a multiple of so many rows, which share words; they divide the
        rows
    """

    file: str
    offset: int
    nbytes: int
    row_nbytes: int | None
    rows_together: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """One file of the artifact: its path below the output directory, header and exact size.

    Bytes that neither the header nor a place covers are zero.
    """

    path: str
    header: bytes = field(repr=False)
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All files of an artifact, and per tensor the places of the parts that ``encode`` returns."""

    files: tuple[FilePlan, ...]
    places: Mapping[str, tuple[Place, ...]]


class Backend(Protocol):
    """Writes one family of formats. Pure functions: the host does all reading and writing.

    Inputs are never modified. Equal inputs give equal bytes. ``encode`` runs on several threads.
    A backend may also have ``runtime(path, context, device)``, see :class:`Runtime`.
    """

    def plan_tensors(self, request: PlanRequest) -> TensorPlans:
        """Decide every tensor's action and grid.

        Raises:
            Unsupported: the architecture or format cannot be written.
        """
        ...

    def layout(self, request: PlanRequest, plans: TensorPlans) -> Layout:
        """Lay out all files: header bytes, sizes, and where each tensor goes."""
        ...

    def encode(
        self, plan: TensorPlan, value: QuantTensor | torch.Tensor
    ) -> Sequence[bytes | memoryview]:
        """Encode a tensor, or a slab of its rows, to one buffer per place.

        value: rows x last dimension; a QuantTensor on ``plan.grid``, or a float tensor in
            ``plan.dtype``, or uint8 rows as stored when ``plan.dtype`` is ``raw``
        """
        ...

    def open(self, path: Path) -> ArtifactReader:
        """Open an artifact with a reader that shares no code with the writer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleInput:
    """An input of a graph.

    shape: outermost first; None: any size
    dtype: numpy's name: ``float32``, ``int64``
    """

    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """What came to some linear weights that share an input.

    weights: names of the source tensors; one that has several inputs is told of with each
    rows: (tokens, in) float32
    """

    weights: tuple[str, ...]
    rows: torch.Tensor


@runtime_checkable
class GraphRunner(Protocol):
    """What a backend also is that reads sources which are graphs: it runs them, for statistics."""

    def graph_inputs(self, model: ModelInfo) -> Mapping[str, SampleInput]:
        """The inputs that a run takes, by name."""
        ...

    def observe(
        self,
        model: ModelInfo,
        places: Mapping[str, tuple[Path, int, int]],
        samples: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    ) -> Iterator[Sequence[Observed]]:
        """Run the graph on each sample, and tell what its linear weights were multiplied with.

        places: of every tensor, its file, the offset there, and its bytes
        samples: inputs by name, of the shapes and dtypes that ``graph_inputs`` states

        Raises:
            BrokenPlugin, Unsupported: what runs it is missing, or does not know the graph.
            UnreadableInput: the graph or a sample is not sound.
        """
        ...


class Check(Protocol):
    """A check of the validator's: what it finds wrong with an artifact, beside its source."""

    def faults(
        self, model: ModelInfo, artifact: ArtifactReader, source: ArtifactReader
    ) -> Iterable[str]:
        """One sentence for each thing that is wrong; it names the tensor. Nothing: all is well.

        Runs at every depth of ``qconv validate``. Tensors are read when asked for, whole.

        model: the source without its weights
        artifact: decoded, by the names the artifact has
        source: what those tensors should be, by the same names: values of the source in the shape
            and order of the artifact
        """
        ...


# --- what a quantized source is -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedTensor:
    """A quantized tensor of a checkpoint, as the model knows it, without its values.

    name: the model's: ``model.layers.0.mlp.up_proj.weight``
    shape: (out, in)
    parts: names of the stored tensors it is decoded from, which then are no tensors of the model
    grid: where its values lie
    activation: how the checkpoint's runtime quantizes the weight's input; None when it does not
    """

    name: str
    shape: tuple[int, int]
    parts: tuple[str, ...]
    grid: Grid
    activation: ActivationGrid | None = None


class Source(Protocol):
    """Reads one family of quantized checkpoints. Pure functions: the host reads the files.

    ``decode`` runs on several threads.
    """

    def tensors(
        self, model: ModelInfo, read: Callable[[str], torch.Tensor]
    ) -> Sequence[EncodedTensor]:
        """Every quantized tensor; stored tensors that are part of none are taken as they are.

        model: as stored, ``quantization_config`` included
        read: a stored tensor by name, shape and dtype as stored; for the small ones that say what
            others hold, such as ``weight_shape`` or ``quant_state``

        Raises:
            UnreadableInput: parts are missing, or their shapes or dtypes contradict the config.
            Unsupported: the checkpoint is of this family, but of a kind that is not decoded.
        """
        ...

    def decode(self, tensor: EncodedTensor, parts: Mapping[str, torch.Tensor]) -> QuantTensor:
        """The tensor on ``tensor.grid``; ``dequantize`` gives what the runtime computes.

        parts: the stored tensors by name, shapes and dtypes as stored

        Raises:
            UnreadableInput: the values contradict the config.
        """
        ...


# --- what a plugin yields -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionSpec:
    """An option of a target or method step, written after it as ``,name=value``.

    choices: the values allowed; empty for any
    """

    name: str
    summary: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatSpec:
    """A format of a backend. Case, ``_`` and ``-`` do not count: ``Q4_K_M`` is ``q4km``.

    runtimes: what loads it, the usual one first, for predicting memory: ``llama.cpp``, ``vllm``,
        ``transformers``, ``onnxruntime``; empty where it is none of these
    """

    name: str
    summary: str
    runtimes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """A backend a plugin offers; ``load`` imports and returns its class, called with nothing.

    reads: kinds of sources that it plans from
    recognizes: whether a file or folder is an artifact of it; looks at names only
    """

    name: str
    summary: str
    formats: tuple[FormatSpec, ...]
    options: tuple[OptionSpec, ...] = ()
    reads: tuple[Kind, ...] = ("safetensors", "gguf")
    recognizes: Callable[[Path], bool] | None = None
    load: Callable[[], Callable[[], Backend]]
    api_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """A method a plugin offers, one step of a chain.

    kind: a ``transform`` rescales (:class:`Transform`); a ``rounder`` chooses codes tensor by
        tensor (:class:`Rounder`), a ``block_rounder`` block by block (:class:`BlockRounder`)
    streams: the rounder treats every row on its own, so the host may feed it slabs of rows
    calibration: ``unused``; ``optional``: better with statistics; ``needed``: nothing without
    gram: of statistics it needs whole Gram matrices; otherwise the diagonal does
    sequential: does best with statistics of blocks that follow quantized ones: the default then
    load: imports and returns the class, which is called with the options given, as keywords that
        hold strings; it raises UsageError for a value that does not do
    """

    name: str
    summary: str
    kind: Literal["transform", "rounder", "block_rounder"] = "rounder"
    streams: bool = False
    calibration: Literal["unused", "optional", "needed"] = "unused"
    gram: bool = True
    sequential: bool = False
    options: tuple[OptionSpec, ...] = ()
    load: Callable[[], Callable[..., Rounder | Transform | BlockRounder]]
    api_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """A family of quantized checkpoints that a plugin reads.

    recognizes: whether a checkpoint is of this family; looks at config and names only, and fast
    load: imports and returns its class, called with nothing
    """

    name: str
    summary: str
    recognizes: Callable[[ModelInfo], bool]
    load: Callable[[], Callable[[], Source]]
    api_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSpec:
    """A validator check a plugin offers; ``load`` returns its class, called with nothing."""

    name: str
    summary: str
    load: Callable[[], Callable[[], Check]]
    api_version: int


# --- hooks ----------------------------------------------------------------------------------------


class Hooks:
    """The hooks. Registration hooks take no arguments and yield specs; order does not matter."""

    @hookspec
    def qconv_methods(self) -> Iterable[MethodSpec]:  # type: ignore[empty-body]
        """Yield the methods this plugin offers."""

    @hookspec
    def qconv_backends(self) -> Iterable[BackendSpec]:  # type: ignore[empty-body]
        """Yield the backends this plugin offers."""

    @hookspec
    def qconv_sources(self) -> Iterable[SourceSpec]:  # type: ignore[empty-body]
        """Yield the families of quantized checkpoints this plugin reads."""

    @hookspec
    def qconv_checks(self) -> Iterable[CheckSpec]:  # type: ignore[empty-body]
        """Yield the validator checks this plugin offers."""

    @hookspec
    def qconv_event(self, event: Event) -> None:
        """Observe what happens. What it raises is logged and never stops the work."""
