"""Plans, lays out, encodes and writes a model as safetensors, without the pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gguf_driver import fill, read_model
from safetensors import safe_open

from qconv.plugin import Layout, ModelInfo, PlanRequest, TensorInfo, TensorPlans
from qconv_safetensors._backend import SafetensorsBackend

BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I8": 1, "F8_E4M3": 1}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tensor(name: str, *shape: int, dtype: str = "BF16") -> TensorInfo:
    info = TensorInfo(name=name, shape=shape, dtype=dtype, nbytes=0)
    return TensorInfo(name=name, shape=shape, dtype=dtype, nbytes=info.numel * BYTES[dtype])


def llama(
    *more: TensorInfo,
    hidden: int = 256,
    inner: int = 512,
    kv: int = 128,
    layers: int = 2,
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> ModelInfo:
    """A Llama without values, with a tied head; ``more`` comes after its own tensors."""
    tensors = [tensor("model.embed_tokens.weight", 1000, hidden)]
    for number in range(layers):
        block = f"model.layers.{number}"
        tensors += [
            tensor(f"{block}.input_layernorm.weight", hidden),
            tensor(f"{block}.self_attn.q_proj.weight", hidden, hidden),
            tensor(f"{block}.self_attn.k_proj.weight", kv, hidden),
            tensor(f"{block}.self_attn.v_proj.weight", kv, hidden),
            tensor(f"{block}.self_attn.o_proj.weight", hidden, hidden),
            tensor(f"{block}.post_attention_layernorm.weight", hidden),
            tensor(f"{block}.mlp.gate_proj.weight", inner, hidden),
            tensor(f"{block}.mlp.up_proj.weight", inner, hidden),
            tensor(f"{block}.mlp.down_proj.weight", hidden, inner),
        ]
    tensors += [tensor("model.norm.weight", hidden), *more]
    return ModelInfo(
        kind="safetensors",
        name="tiny",
        config={**CONFIG, "num_hidden_layers": layers} if config is None else config,
        tensors={each.name: each for each in tensors},
        files=files or {},
        metadata={},
    )


def plan(
    model: ModelInfo,
    target: str,
    method: tuple[str, ...] = ("rtn",),
    held: Mapping[str, Any] | None = None,
    **options: str,
) -> TensorPlans:
    return SafetensorsBackend().plan_tensors(request(model, target, method, held, **options))


def request(
    model: ModelInfo,
    target: str,
    method: tuple[str, ...] = ("rtn",),
    held: Mapping[str, Any] | None = None,
    **options: str,
) -> PlanRequest:
    return PlanRequest(model=model, format=target, options=options, method=method, held=held or {})


def files(asked: PlanRequest) -> dict[str, bytes]:
    """The headers of all planned files by path: of small files that is all of them."""
    backend = SafetensorsBackend()
    layout = backend.layout(asked, backend.plan_tensors(asked))
    return {file.path: file.header for file in layout.files}


def config(model: ModelInfo, target: str, **options: Any) -> dict[str, Any]:
    """config.json of the artifact."""
    found = files(request(model, target, **options))
    (name,) = (path for path in found if path.endswith("/config.json"))
    return json.loads(found[name])


def settings(model: ModelInfo, target: str, **options: Any) -> dict[str, Any]:
    """The ``quantization_config`` of the artifact."""
    return config(model, target, **options)["quantization_config"]


def write(folder: Path, target: str, out: Path, **options: Any) -> tuple[Path, TensorPlans, Layout]:
    """Convert a model directory by plain rounding, whole tensors at a time."""
    model, weights = read_model(folder)
    return write_request(request(model, target, **options), weights, out)


def write_request(
    asked: PlanRequest, weights: dict[str, torch.Tensor], out: Path
) -> tuple[Path, TensorPlans, Layout]:
    backend = SafetensorsBackend()
    plans = backend.plan_tensors(asked)
    layout = backend.layout(asked, plans)
    contents = {file.path: bytearray(file.nbytes) for file in layout.files}
    for file in layout.files:
        contents[file.path][: len(file.header)] = file.header
    for each in plans.tensors:
        value = fill(each, raw_rows(weights) if each.dtype == "raw" else weights)
        places = layout.places[each.name]
        for place, part in zip(places, backend.encode(each, value), strict=True):
            assert memoryview(part).nbytes == place.nbytes
            contents[place.file][place.offset : place.offset + place.nbytes] = part
    for path, data in contents.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(data)
    return (out / layout.files[0].path).parent, plans, layout


def raw_rows(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: value.contiguous().reshape(-1).view(torch.uint8).reshape(1, -1)
        for name, value in weights.items()
    }


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """All stored tensors of an artifact, by the safetensors library."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found
