"""What qconv writes quantized, it reads as a source: into GGUF, into plain floats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import byte_level_files, llama_config, save_model
from safetensors.torch import load_file

import qconv
from qconv_gguf._reader import GgufReader
from qconv_safetensors._reader import SafetensorsReader

CONFIG = llama_config(
    hidden_size=128,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
)
TARGETS = (
    "int4,group_size=64",
    "int4,bits=3,group_size=64,symmetric=true",
    "int8",
    "fp8",
    "fp8,scope=block",
    "gptq,group_size=64",
    "gptq_v2,group_size=64",
    "awq,group_size=64",
    "nf4",
    "fp4,double_quant=false",
)
UP = "model.layers.0.mlp.up_proj.weight"


def convert(source: Path, target: str, out: Path) -> Path:
    (artifact,) = qconv.convert(source, target, out=out).artifacts
    return Path(artifact.files[0])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return save_model(folder, CONFIG, byte_level_files(), torch.bfloat16)


@pytest.mark.parametrize("target", TARGETS)
def test_a_quantized_artifact_converts_to_what_it_decodes_to(
    target: str, llama: Path, tmp_path: Path
) -> None:
    folder = convert(llama, f"safetensors:{target}", tmp_path).parent
    reader = SafetensorsReader(folder)
    assert UP in reader.encoded
    plain = load_file(convert(folder, "safetensors:fp32", tmp_path / "plain"))
    assert plain.keys() == reader.tensors.keys()
    for name, value in plain.items():
        assert torch.equal(value, reader.read(name)), name
    gguf = GgufReader(convert(folder, "gguf:f32", tmp_path / "gguf"))
    assert torch.equal(gguf.read("blk.0.ffn_up.weight"), plain[UP])


def test_a_gguf_converts_to_what_it_decodes_to(llama: Path, tmp_path: Path) -> None:
    path = convert(llama, "gguf:q8_0", tmp_path)
    plain: dict[str, Any] = load_file(convert(path, "safetensors:fp32", tmp_path / "plain"))
    gguf = GgufReader(path)
    assert torch.equal(plain[UP], gguf.read("blk.0.ffn_up.weight"))
    rows = gguf.read("blk.0.attn_q.weight")
    # llama.cpp pairs neighbours where transformers pairs halves
    assert torch.equal(plain["model.layers.0.self_attn.q_proj.weight"][:32], rows[0:64:2])
    quantized = convert(path, "safetensors:int4,group_size=64", tmp_path)
    assert UP in SafetensorsReader(quantized.parent).encoded


def test_a_gguf_of_llama_3_states_its_rotation_again(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = {**CONFIG, "rope_theta": 500000.0, "rope_scaling": scaling}
    source = save_model(tmp_path / "tiny", config, byte_level_files(), torch.bfloat16)
    path = convert(source, "gguf:f16", tmp_path)
    folder = convert(path, "safetensors:bf16", tmp_path).parent
    assert json.loads((folder / "config.json").read_bytes())["rope_scaling"] == scaling
    assert not any("rope" in name for name in load_file(folder / "model.safetensors"))
