"""Plans, lays out, encodes and writes a model as GGUF, in memory and without the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from qconv.plugin import ModelInfo, PlanRequest, TensorInfo, TensorPlan
from qconv.tensors import QuantTensor
from qconv_gguf._backend import GgufBackend
from qconv_gguf._container import Value
from qconv_gguf._reader import GgufReader

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def read_model(folder: Path) -> tuple[ModelInfo, dict[str, torch.Tensor]]:
    """A model directory with its weights."""
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    files = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"
    }
    return model_info(folder.name, json.loads(files["config.json"]), weights, files), weights


def model_info(
    name: str, config: dict, weights: dict[str, torch.Tensor], files: dict[str, bytes]
) -> ModelInfo:
    """A safetensors model as the host describes it."""
    tensors = {
        key: TensorInfo(
            name=key,
            shape=tuple(value.shape),
            dtype=_DTYPES[str(value.dtype).removeprefix("torch.")],
            nbytes=value.nbytes,
        )
        for key, value in weights.items()
    }
    return ModelInfo(
        kind="safetensors", name=name, config=config, tensors=tensors, files=files, metadata={}
    )


def fill(plan: TensorPlan, weights: dict[str, torch.Tensor]):
    """The values of one planned tensor, as the host hands them to ``encode``."""
    if plan.values is not None:
        return torch.tensor(plan.values).reshape(1, -1)
    rows = torch.cat([weights[name].reshape(-1, weights[name].shape[-1]) for name in plan.sources])
    if plan.row_order is not None:
        rows = rows[torch.tensor(list(plan.row_order.index))]
    if plan.grid is None:
        return rows if plan.dtype == "raw" else rows.to(getattr(torch, plan.dtype))
    codes, parameters = plan.grid.quantize(rows.float())
    return QuantTensor(grid=plan.grid, codes=codes, parameters=parameters)


def write_request(
    request: PlanRequest,
    weights: dict[str, torch.Tensor],
    out: Path,
    raw: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Plan, lay out, encode and write one file. raw: tensors as stored, for those copied so."""
    backend = GgufBackend()
    plans = backend.plan_tensors(request)
    layout = backend.layout(request, plans)
    (file,) = layout.files
    data = bytearray(file.nbytes)
    data[: len(file.header)] = file.header
    for plan in plans.tensors:
        (place,) = layout.places[plan.name]
        (part,) = backend.encode(plan, fill(plan, raw if raw and plan.dtype == "raw" else weights))
        assert part.nbytes == place.nbytes
        data[place.offset : place.offset + place.nbytes] = part
    path = out / file.path
    path.write_bytes(data)
    return path


def read_gguf(*paths: Path) -> tuple[ModelInfo, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A GGUF source as the host describes it, its decoded tensors, and their raw rows."""
    import gguf

    infos, values, raw, metadata = {}, {}, {}, {}
    for path in paths:
        reader = gguf.GGUFReader(path)
        for key, field in reader.fields.items():
            kinds = [int(kind) for kind in field.types]
            if not key.startswith("GGUF."):
                element = kinds[1] if len(kinds) > 1 else None
                metadata[key] = Value(kinds[0], field.contents(), element)
        for entry in reader.tensors:
            shape = tuple(int(size) for size in reversed(entry.shape))
            infos[entry.name] = TensorInfo(
                name=entry.name,
                shape=shape,
                dtype=entry.tensor_type.name,
                nbytes=int(entry.n_bytes),
            )
            values[entry.name] = GgufReader(path).read(entry.name)
            rows = entry.data.reshape(-1, entry.data.shape[-1])
            raw[entry.name] = torch.tensor(rows.view("uint8"))
    model = ModelInfo(
        kind="gguf", name=paths[0].stem, config={}, tensors=infos, files={}, metadata=metadata
    )
    return model, values, raw
