"""Our packers write what the layouts' owners write, and our decoders read what they wrote.

The vectors are described, and were made, by ``tests/golden/make_safetensors.py``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from qconv.grids import grid_from_spec
from qconv.plugin import ModelInfo, TensorInfo
from qconv.tensors import QuantTensor
from qconv_safetensors._layouts import layout_of
from qconv_safetensors._sources import source_specs

FILES = sorted((Path(__file__).parents[1] / "golden" / "safetensors").glob("*.safetensors"))
MODULE = "model.layers.0.mlp.up_proj"
STORED = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
}


@dataclass(frozen=True)
class Golden:
    """A vector. packed: what the peer stores, by the name below the module."""

    about: dict[str, Any]
    plain: dict[str, torch.Tensor]
    packed: dict[str, torch.Tensor]

    @property
    def value(self) -> QuantTensor:
        plain = dict(self.plain)
        values = plain.pop("values")
        codes = plain.pop("codes", None)
        if codes is None:
            codes = self.packed["weight"].view(torch.uint8)
        assert codes.shape == values.shape
        grid = grid_from_spec(self.about["grid"])
        return QuantTensor(grid=grid, codes=codes, parameters=plain)

    @property
    def dtype(self) -> str:
        """What the model computes in."""
        return self.about.get("dtype", "bfloat16")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request) -> Golden:
    tensors = load_file(request.param)
    with safe_open(request.param, "pt") as file:
        about = json.loads(file.metadata()["golden"])
    split = "packed."
    return Golden(
        about,
        {name: tensor for name, tensor in tensors.items() if not name.startswith(split)},
        {name.removeprefix(split): t for name, t in tensors.items() if name.startswith(split)},
    )


def test_every_layout_has_vectors():
    layouts = set()
    for path in FILES:
        with safe_open(path, "pt") as file:
            layouts.add(json.loads(file.metadata()["golden"])["layout"])
    assert layouts == {
        "pack-quantized", "int-quantized", "float-quantized", "gptq", "gptq_v2", "awq",
        "bitsandbytes",
    }  # fmt: skip


def test_packed_parts_are_the_peers_byte_for_byte(golden):
    layout = layout_of(golden.about["layout"])
    value = golden.value
    if golden.about["layout"] == "int-quantized" and not value.grid.symmetric:
        pytest.skip("read, but never written: no runtime's kernel takes zero-points here")
    parts = layout.parts(f"{MODULE}.weight", value.shape, value.grid, None, golden.dtype)
    packed = iter(layout.pack(f"{MODULE}.weight", value, golden.dtype))
    found = {}
    for part in parts:
        data = part.constant if part.constant is not None else raw(next(packed))
        assert len(data) == part.nbytes, part.suffix
        found[part.suffix] = comparable(part.suffix, part.dtype, part.shape, data)
    assert next(packed, None) is None
    assert found == {
        suffix: comparable(suffix, STORED[tensor.dtype], tuple(tensor.shape), raw(tensor))
        for suffix, tensor in golden.packed.items()
    }


def test_decoded_codes_and_values_are_the_peers_bit_for_bit(golden):
    decoded = decode(golden)
    expected = golden.value
    assert torch.equal(decoded.codes, expected.codes)
    assert decoded.parameters.keys() == expected.parameters.keys()
    for name, parameter in expected.parameters.items():
        assert torch.equal(decoded.parameters[name], parameter), name
    values = golden.plain["values"]
    assert torch.equal(decoded.dequantize().to(values.dtype), values)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def comparable(suffix: str, dtype: str, shape: tuple[int, ...], data: bytes) -> tuple[object, ...]:
    """The part as it is; of text, which is JSON, what it says: spaces and order do not count."""
    if "quant_state.bitsandbytes" in suffix:
        return dtype, json.loads(data)
    return dtype, shape, data


def decode(golden: Golden) -> QuantTensor:
    """What the source plugin reads from the peer's tensors in a model that has nothing else."""
    tensors = {f"{MODULE}.{suffix}": tensor for suffix, tensor in golden.packed.items()}
    model = ModelInfo(
        kind="safetensors",
        name="golden",
        config={"torch_dtype": golden.dtype, "quantization_config": config_of(golden.about)},
        tensors={name: info(name, tensor) for name, tensor in tensors.items()},
        files={},
        metadata={},
    )
    spec = next(spec for spec in source_specs() if spec.recognizes(model))
    source = spec.load()()
    (encoded,) = source.tensors(model, tensors.__getitem__)
    assert encoded.name == f"{MODULE}.weight"
    assert sorted(encoded.parts) == sorted(tensors)
    return source.decode(encoded, {name: tensors[name] for name in encoded.parts})


def info(name: str, tensor: torch.Tensor) -> TensorInfo:
    shape = tuple(tensor.shape)
    nbytes = math.prod(shape) * tensor.element_size()
    return TensorInfo(name=name, shape=shape, dtype=STORED[tensor.dtype], nbytes=nbytes)


def config_of(about: dict[str, Any]) -> dict[str, Any]:
    """``quantization_config`` as the peer writes it, as far as it is of consequence."""
    layout, grid = about["layout"], about["grid"]
    if layout == "bitsandbytes":
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": grid["codebook"],
            "bnb_4bit_use_double_quant": grid["double_quant"],
        }
    if layout == "awq":
        settings = {"bits": 4, "group_size": grid["group_size"], "zero_point": True}
        return {"quant_method": "awq", "version": "gemm", **settings}
    if layout in ("gptq", "gptq_v2"):
        size = -1 if grid["group_size"] == "channel" else grid["group_size"]
        settings = {"bits": grid["bits"], "group_size": size, "desc_act": False}
        return {
            "quant_method": "gptq",
            "checkpoint_format": layout,
            "sym": grid["symmetric"],
            **settings,
        }
    weights = compressed_tensors_weights(grid)
    activations = None
    if layout != "pack-quantized":
        kind = {"num_bits": 8, "type": weights["type"], "symmetric": True}
        activations = {"strategy": "token", "dynamic": True, **kind}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": layout,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"format": layout, **group}},
    }


def compressed_tensors_weights(grid: dict[str, Any]) -> dict[str, Any]:
    if grid["family"] == "float":
        block = {"block_structure": [128, 128]} if grid["scope"] == "block" else {}
        settings = {"num_bits": 8, "type": "float", "symmetric": True}
        return {**settings, "strategy": grid["scope"], **block}
    size = grid["group_size"]
    unit = {"strategy": "channel"} if size == "channel" else {"strategy": "group"}
    if size != "channel":
        unit["group_size"] = size
    return {"num_bits": grid["bits"], "type": "int", "symmetric": grid["symmetric"], **unit}
