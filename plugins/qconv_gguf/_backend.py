"""The GGUF backend: plans, lays out, encodes and opens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput, UnsupportedGrid
from qconv.plugin import (
    Action,
    ArtifactReader,
    Layout,
    ModelInfo,
    PlanRequest,
    RowOrder,
    TensorInfo,
    TensorPlan,
    TensorPlans,
)

from ._config import LlamaConfig, read_config
from ._container import lay_out
from ._gguf_source import gguf_metadata, gguf_traits
from ._llama import Part, llama_dropped, llama_parts
from ._metadata import llama_metadata
from ._mixture import Candidate, Choice, Traits, choose_types, file_order, seventy_b
from ._types import FLOATS, SUPER_BLOCKS, FileType, file_type, is_file_type

if TYPE_CHECKING:
    import torch

    from qconv.grids import Grid
    from qconv.tensors import QuantTensor

    from ._llama_cpp import LlamaCpp


@dataclass(frozen=True, slots=True, kw_only=True)
class _LlamaPlan(TensorPlan):
    """A tensor made from a Llama checkpoint. To the host a vector is one row, never reordered.

    value_order: which source value each value of a vector comes from; None keeps them
    """

    value_order: RowOrder | None = None


class GgufBackend:
    """Writes GGUF files: from safetensors of the Llama family, or from GGUF of any architecture."""

    def plan_tensors(self, request: PlanRequest) -> TensorPlans:
        """Choose every tensor's type as llama.cpp does, in llama.cpp's order.

        Raises:
            Unsupported: the architecture or format cannot be written.
            UnreadableInput: a tensor that the config demands is missing or has another shape.
        """
        target = file_type(request.format)
        model = request.model
        if model.kind == "gguf":
            return _plan_gguf(request, target)
        config = read_config(model.config)
        parts = llama_parts(model, config)
        candidates = [Candidate(name=p.name, shape=p.shape, stored="F32") for p in parts]
        choices = choose_types(
            candidates, _llama_traits(config), target, importance=request.importance
        )
        plans = [_plan_part(part, choices[part.name], request) for part in parts]
        plans.sort(key=lambda plan: file_order(plan.name))
        return TensorPlans(tensors=tuple(plans), dropped=llama_dropped(model, config))

    def layout(self, request: PlanRequest, plans: TensorPlans) -> Layout:
        """One file ``<model>-<FORMAT>.gguf``: metadata, tokenizer, and every tensor's place.

        Raises:
            UnreadableInput: no tokenizer, or a damaged one.
            Unsupported: a tokenizer that llama.cpp would not follow.
        """
        target = file_type(request.format)
        model = request.model
        if model.kind == "gguf":
            metadata = gguf_metadata(model, target)
        else:
            config = read_config(model.config)
            metadata = llama_metadata(model, config, target, request.options)
        return lay_out(f"{_stem(model)}-{target.name}.gguf", metadata, plans.tensors)

    def encode(
        self, plan: TensorPlan, value: QuantTensor | torch.Tensor
    ) -> Sequence[bytes | memoryview]:
        """Encode rows to the blocks, floats or raw bytes that the file holds.

        Raises:
            UnsupportedGrid: a value is beyond float16.
        """
        import torch

        if not isinstance(value, torch.Tensor):
            from ._packing import pack

            return [_bytes(pack(plan.storage.lower(), value.codes, value.parameters))]
        if plan.dtype == "raw" or plan.dtype is None:
            return [_bytes(value)]
        if isinstance(plan, _LlamaPlan) and plan.value_order is not None:
            value = value.index_select(-1, torch.tensor(list(plan.value_order.index)))
        floats = value.to(getattr(torch, plan.dtype))
        if floats.dtype == torch.float16 and not bool(torch.isfinite(floats).all()):
            raise UnsupportedGrid(
                f"tensor {plan.name!r}: a value is beyond float16's largest, 65504; "
                "choose gguf:bf16 or gguf:f32"
            )
        return [_bytes(floats)]

    def open(self, path: Path) -> ArtifactReader:
        """Open a file with the ``gguf`` library, which shares no code with this writer.

        Raises:
            UnreadableInput: the file is not a sound GGUF file.
        """
        from ._reader import GgufReader

        return GgufReader(path)

    def runtime(self, path: Path, context: int = 512, device: str = "auto") -> LlamaCpp:
        """Load a file into llama.cpp itself.

        context: most tokens at once; device: what it computes on, see :class:`qconv.plugin.Runtime`

        Raises:
            BrokenPlugin: the ``llama-cpp`` extra is not installed.
            UnreadableInput: llama.cpp refuses the file.
        """
        from ._llama_cpp import LlamaCpp

        return LlamaCpp(path, n_ctx=context, device=device)


def _stem(model: ModelInfo) -> str:
    """The model's name; a GGUF file's without the type that its name ends in."""
    name = model.name.replace("/", "-").replace("\\", "-")
    if model.kind == "gguf":
        stem, _, last = name.replace(".", "-").rpartition("-")
        name = name[: len(stem)] if stem and is_file_type(last) else name
    return name or "model"


def _llama_traits(config: LlamaConfig) -> Traits:
    return Traits(
        architecture="llama",
        layers=config.layers,
        heads_per_kv=config.heads // config.kv_heads,
        experts=0,
        seventy_b=seventy_b("llama", config.layers, grouped=config.heads != config.kv_heads),
    )


def _plan_part(part: Part, choice: Choice, request: PlanRequest) -> TensorPlan:
    """The fate of one tensor of a safetensors checkpoint."""
    grid = _grid(choice.type, request)
    dtype = FLOATS.get(choice.type)
    same = part.source is not None and part.source.dtype == choice.type
    action: Action = "quantize" if grid else "copy" if same else "cast"
    reason = choice.reason if choice.eligible else "vectors stay in 32 bits"
    if part.source is None:
        action, reason = "generate", "frequency factors from the rope scaling of config.json"
    order, vector = part.row_order, len(part.shape) == 1
    if order is not None and vector:
        reason = f"{reason}; {order.label}"
    return _LlamaPlan(
        name=part.name,
        sources=() if part.source is None else (part.source.name,),
        shape=part.shape,
        action=action,
        storage=choice.type,
        grid=grid,
        dtype=dtype,
        reason=reason,
        fallback_from=choice.wanted,
        row_order=None if vector else order,
        value_order=order if vector else None,
        values=part.values,
    )


def _plan_gguf(request: PlanRequest, target: FileType) -> TensorPlans:
    """Requantize a GGUF source: what llama.cpp would not touch is copied as it is."""
    infos = request.model.tensors
    candidates = [Candidate(name=t.name, shape=t.shape, stored=t.dtype) for t in infos.values()]
    traits = gguf_traits(request.model)
    choices = choose_types(candidates, traits, target, importance=request.importance)
    plans = [
        _plan_stored(infos[name], choices[name], request) for name in sorted(infos, key=file_order)
    ]
    return TensorPlans(tensors=tuple(plans))


def _plan_stored(info: TensorInfo, choice: Choice, request: PlanRequest) -> TensorPlan:
    same = info.dtype == choice.type
    grid = None if same else _grid(choice.type, request)
    reason = f"{choice.reason}; stored so already" if same and choice.eligible else choice.reason
    return TensorPlan(
        name=info.name,
        sources=(info.name,),
        shape=_ggml_shape(info.shape),
        action="copy" if same else "quantize" if grid else "cast",
        storage=choice.type,
        grid=grid,
        dtype="raw" if same else FLOATS.get(choice.type),
        reason=reason,
        fallback_from=choice.wanted,
    )


def _ggml_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without outer dimensions of size one, which ggml does not count."""
    outer = next((at for at, size in enumerate(shape[:-1]) if size != 1), len(shape) - 1)
    return shape[max(0, outer) :]


def _grid(type_name: str, request: PlanRequest) -> Grid | None:
    """The grid of a quantized type, None for a float type."""
    if type_name in FLOATS:
        return None
    from qconv.grids import BlockGrid, SuperBlockGrid

    kind: Any = type_name.lower()
    search: Any = request.options.get("search", "default")  # the host allows the choices only
    if type_name in SUPER_BLOCKS:
        return SuperBlockGrid(type=kind, search=search)
    return BlockGrid(type=kind, search=search)


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's memory, little endian as on every machine that torch runs on."""
    import torch

    flat = tensor.detach().cpu().contiguous().view(-1)
    if flat.numel() == 0:
        raise UnreadableInput("an empty tensor cannot be written; leave it out of the source")
    return flat.view(torch.uint8).numpy().data
