"""A tiny driver: plans, lays out, encodes and writes a model directory, without the pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from qconv.plugin import ModelInfo, PlanRequest, TensorInfo, TensorPlan
from qconv.tensors import QuantTensor
from qconv_gguf._backend import GgufBackend

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
Write = Callable[..., Path]


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


def fill(backend: GgufBackend, plan: TensorPlan, weights: dict[str, torch.Tensor]):
    """The values of one planned tensor, as the host hands them to ``encode``."""
    if plan.values is not None:
        return torch.tensor(plan.values).reshape(1, -1)
    rows = torch.cat([weights[name].reshape(-1, weights[name].shape[-1]) for name in plan.sources])
    if plan.row_order is not None:
        index = torch.tensor(list(plan.row_order.index))
        flat = rows.reshape(-1) if rows.shape[0] == 1 else rows
        rows = flat[index].reshape(rows.shape)
    if plan.grid is None:
        return rows if plan.dtype == "raw" else rows.to(getattr(torch, plan.dtype))
    codes, parameters = plan.grid.quantize(rows.float())
    return QuantTensor(grid=plan.grid, codes=codes, parameters=parameters)


@pytest.fixture
def write_gguf(tmp_path: Path) -> Write:
    """Convert a model directory: ``write_gguf(folder, "f16", pre="gpt-2")`` gives the file."""

    def write(folder: Path, target: str, **options: str) -> Path:
        model, weights = read_model(folder)
        request = PlanRequest(model=model, format=target, options=options)
        return write_request(request, weights, tmp_path)

    return write


def write_request(request: PlanRequest, weights: dict[str, torch.Tensor], out: Path) -> Path:
    """Plan, lay out, encode and write one file."""
    backend = GgufBackend()
    plans = backend.plan_tensors(request)
    layout = backend.layout(request, plans)
    (file,) = layout.files
    data = bytearray(file.nbytes)
    data[: len(file.header)] = file.header
    for plan in plans.tensors:
        (place,) = layout.places[plan.name]
        (part,) = backend.encode(plan, fill(backend, plan, weights))
        assert part.nbytes == place.nbytes
        data[place.offset : place.offset + place.nbytes] = part
    path = out / file.path
    path.write_bytes(data)
    return path
