"""On CUDA, an artifact takes the memory that is predicted for it, its weights packed as stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qconv
from qconv.memory import measure

MIB = 2**20

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device that torch can use"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama of 100 million weights in bfloat16, and what is made of it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=8192, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8,
        num_attention_heads=16, num_key_value_heads=4, max_position_embeddings=8192,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "llama")
    for target in ("int4", "int8", "fp8", "nf4"):
        qconv.convert(folder / "llama", to=f"safetensors:{target}", out=folder)
    return folder


@pytest.mark.parametrize("name", ["llama", "llama-INT4", "llama-INT8", "llama-FP8", "llama-NF4"])
def test_the_device_takes_what_is_predicted(model: Path, name: str) -> None:
    made = measure(model / name, context=4096, device="cuda")
    result, figures = made.result, made.result.figures
    print(f"{name}: {result.low / MIB:.0f} to {result.high / MIB:.0f} MiB predicted", figures)
    assert figures["max_memory_allocated"] <= figures["max_memory_reserved"]
    assert figures["max_memory_reserved"] <= figures["device"] + 64 * MIB
    assert result.error is not None
    assert result.measured is not None
    assert abs(result.error) <= max(300 * MIB, result.measured // 10), result


def test_packed_weights_stay_packed(model: Path) -> None:
    whole = measure(model / "llama", context=512, device="cuda").result.figures
    packed = measure(model / "llama-INT4", context=512, device="cuda").result.figures
    linears = 2 * 8 * (1024 * (1024 + 256) * 2 + 3 * 1024 * 2816)
    saved = whole["max_memory_allocated"] - packed["max_memory_allocated"]
    assert saved > linears * 0.5  # of three quarters, less one linear in float32
