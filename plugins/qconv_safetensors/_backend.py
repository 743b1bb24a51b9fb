"""The safetensors backend: plans, lays out, encodes and opens."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from qconv.errors import UnreadableInput, Unsupported, UnsupportedGrid
from qconv.plugin import (
    ArtifactReader,
    Layout,
    ModelInfo,
    PlanRequest,
    TensorPlan,
    TensorPlans,
)

from ._config import config_files
from ._container import Stored, lay_out, small_file
from ._layouts import layout_of
from ._options import FORMATS
from ._part import DTYPE_NBYTES, Part
from ._planner import Job, PlannedTensor, plan, read_job

if TYPE_CHECKING:
    import torch

    from qconv.tensors import QuantTensor

    from ._options import Scheme
    from ._transformers import Transformers

#: Companions that say how a source was quantized or split, which the artifact says itself.
_STALE = frozenset(
    {
        "config.json",
        "hf_quant_config.json",
        "model.safetensors.index.json",
        "quant_config.json",
        "quantize_config.json",
        "recipe.yaml",
    }
)

#: What artifacts are called after, :func:`_label`.
_LABELS = frozenset({*(f"INT{bits}" for bits in range(2, 9)), *(name.upper() for name in FORMATS)})


class SafetensorsBackend:
    """Writes Hugging Face checkpoints, from safetensors or GGUF."""

    def plan_tensors(self, request: PlanRequest) -> TensorPlans:
        """Put the linear weights of blocks on the format's grid; carry everything else over.

        Raises:
            UsageError: an option is unknown to the format, or no runtime computes what it asks for.
            Unsupported: the architecture or format cannot be written.
            UnsupportedGrid: a weight's shape or held grid does not suit the format.
        """
        return plan(request)

    def layout(self, request: PlanRequest, plans: TensorPlans) -> Layout:
        """A folder ``<model>-<FORMAT>`` as ``from_pretrained`` takes it.

        Raises:
            Unsupported: a module left in float cannot be told apart by its runtime.
        """
        job = read_job(request)
        folder = f"{_stem(job.model)}-{_label(job.scheme, plans)}"
        stored = [_stored(each) for each in plans.tensors]
        weights = lay_out(folder, stored, job.scheme.shard_nbytes)
        companions = [
            small_file(f"{folder}/{name}", data) for name, data in _companions(job, plans)
        ]
        return Layout(files=(*weights.files, *companions), places=weights.places)

    def encode(
        self, plan: TensorPlan, value: QuantTensor | torch.Tensor
    ) -> Sequence[bytes | memoryview]:
        """Encode a tensor, or a slab of its rows, to the bytes of each of its parts.

        Raises:
            UnsupportedGrid: the layout cannot hold a value.
        """
        import torch

        planned = _planned(plan)
        if isinstance(value, torch.Tensor):
            return [_bytes(_float_values(planned, value))]
        if planned.layout is None:
            raise UnsupportedGrid(
                f"plugin author: tensor {plan.name!r} was planned to stay float, and came quantized"
            )
        packed = layout_of(planned.layout).pack(plan.name, value, planned.computed_in)
        values = iter([_bytes(each) for each in packed])
        placed = [part for part in _parts(planned) if not part.in_header]
        return [next(values) if part.constant is None else part.constant for part in placed]

    def open(self, path: Path) -> ArtifactReader:
        """Open a folder with a reader that shares no code with this writer.

        Raises:
            UnreadableInput: the folder holds no sound checkpoint.
        """
        from ._reader import SafetensorsReader

        return SafetensorsReader(path)

    def runtime(self, path: Path, context: int = 512, device: str = "auto") -> Transformers:
        """Load a folder into transformers.

        context: most tokens at once; device: what it computes on, see :class:`qconv.plugin.Runtime`

        Raises:
            BrokenPlugin: transformers, or a library that it needs, is not installed.
            UnreadableInput: transformers refuses the folder.
        """
        from ._transformers import Transformers

        return Transformers(path, context=context, device=device)


def _stem(model: ModelInfo) -> str:
    """The model's name, fit for a folder's, without the format that its name ends in."""
    name = model.name.replace("/", "-").replace("\\", "-")
    stem, _, last = name.rpartition("-")
    return (stem if stem and last in _LABELS else name) or "model"


def _label(scheme: Scheme, plans: TensorPlans) -> str:
    """What the artifact is called after: the format, at 3 bits ``INT3``."""
    if scheme.format != "int4":
        return scheme.format.upper()
    bits = {each.grid.spec()["bits"] for each in plans.tensors if each.grid is not None}
    return f"INT{bits.pop() if len(bits) == 1 else scheme.bits}"


def _companions(job: Job, plans: TensorPlans) -> list[tuple[str, bytes]]:
    """config.json and what else must lie beside the weights, by name."""
    planned = tuple(_planned(each) for each in plans.tensors)
    carried = {name: data for name, data in job.view.files.items() if name not in _STALE}
    files = {**carried, **config_files(job, planned)}
    return sorted(files.items())


def _planned(plan: TensorPlan) -> PlannedTensor:
    if not isinstance(plan, PlannedTensor):
        raise Unsupported(
            f"plugin author: tensor {plan.name!r} was not planned by the safetensors backend"
        )
    return plan


def _parts(plan: PlannedTensor) -> tuple[Part, ...]:
    """The parts of a quantized weight, constants included."""
    if plan.layout is None or plan.grid is None:
        return ()
    shape = (plan.shape[0], plan.shape[1])
    return layout_of(plan.layout).parts(
        plan.name, shape, plan.grid, plan.activation, plan.computed_in
    )


def _stored(plan: TensorPlan) -> Stored:
    """What a tensor is stored as: a float tensor as itself."""
    planned = _planned(plan)
    rows = prod(plan.shape[:-1])
    if planned.layout is not None:
        prefix = plan.name.removesuffix("weight")
        parts = tuple((f"{prefix}{part.suffix}", part) for part in _parts(planned))
        return Stored(name=plan.name, rows=rows, parts=parts)
    if plan.storage not in DTYPE_NBYTES:
        raise Unsupported(
            f"tensor {plan.name!r}: dtype {plan.storage} is not one this backend writes "
            f"({', '.join(sorted(DTYPE_NBYTES))}); leave it out of the source"
        )
    if not all(plan.shape):
        raise UnreadableInput(
            f"tensor {plan.name!r}: shape {plan.shape} holds no values; leave it out of the source"
        )
    part = Part(suffix="", dtype=plan.storage, shape=plan.shape, by_rows=True)
    return Stored(name=plan.name, rows=rows, parts=((plan.name, part),))


def _float_values(plan: PlannedTensor, value: torch.Tensor) -> torch.Tensor:
    import torch

    if plan.dtype == "raw" or plan.dtype is None:
        return value
    if plan.value_order is not None:
        value = value.index_select(-1, torch.tensor(list(plan.value_order.index)))
    return value.to(getattr(torch, plan.dtype))


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's memory, little endian as on every machine that torch runs on."""
    import torch

    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
