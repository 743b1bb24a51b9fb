"""A GGUF file becomes a folder that transformers loads, plain or quantized."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import byte_level_files, llama_config, llama_weights, save_model
from safetensors_driver import read_all

import qconv
import qconv.checkpoint
from qconv.grids import UniformGrid
from qconv.plugin import PlanRequest
from qconv_safetensors._backend import SafetensorsBackend

Write = Callable[..., Path]
CHANGES: list[dict[str, Any]] = [{}, {"attention_bias": True, "tie_word_embeddings": True}]


@pytest.mark.parametrize("changes", CHANGES)
def test_floats_come_back_as_they_were(
    changes: dict[str, Any], tmp_path: Path, write_gguf: Write
) -> None:
    config = llama_config(**changes)
    folder = save_model(tmp_path / "tiny", config, byte_level_files())
    qconv.convert(write_gguf(folder, "f32"), "safetensors:fp32", out=tmp_path / "back")
    (back,) = (tmp_path / "back").iterdir()
    found, expected = read_all(back), llama_weights(config)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert json.loads((back / "config.json").read_text())["torch_dtype"] == "float32"


def test_weights_are_quantized_with_their_rows_in_transformers_order(
    tmp_path: Path, write_gguf: Write
) -> None:
    config = llama_config()
    folder = save_model(tmp_path / "tiny", config, byte_level_files())
    qconv.convert(write_gguf(folder, "f32"), "safetensors:int4,group_size=64", out=tmp_path / "out")
    (out,) = (tmp_path / "out").iterdir()
    reader = SafetensorsBackend().open(out)
    grid = UniformGrid(bits=4, symmetric=False, group_size=64, scale_dtype="bfloat16")
    for name, value in llama_weights(config).items():
        expected = value
        if "_proj" in name:
            expected = grid.decode(*grid.quantize(value))
        assert torch.equal(reader.read(name), expected), name


@pytest.mark.parametrize(
    ("stored", "dtype"), [("f32", "float32"), ("f16", "float16"), ("q8_0", "bfloat16")]
)
def test_the_dtype_is_that_of_most_values_and_stated(
    stored: str, dtype: str, tmp_path: Path, write_gguf: Write
) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(), byte_level_files())
    with qconv.checkpoint.open_checkpoint(write_gguf(folder, stored)) as checkpoint:
        backend = SafetensorsBackend()
        request = PlanRequest(model=checkpoint.model, format="int4")
        plans = backend.plan_tensors(request)
        layout = backend.layout(request, plans)
    norm = next(each for each in plans.tensors if each.name == "model.norm.weight")
    assert norm.storage == {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    config = next(file for file in layout.files if file.path.endswith("/config.json"))
    assert json.loads(config.header)["torch_dtype"] == dtype
