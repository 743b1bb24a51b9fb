"""transformers loads quantized models of many architectures and computes what they decode to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file

import qconv
from qconv_safetensors._backend import SafetensorsBackend

#: Groups of 32 must divide them.
SHAPES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
CHANGES: dict[str, dict[str, Any]] = {
    "gemma3_text": SHAPES,
    "mixtral": SHAPES,
    "opt": {"hidden_size": 64, "ffn_dim": 128},
    "phi3": SHAPES,
    "qwen2": SHAPES,
    "qwen3_moe": {**SHAPES, "moe_intermediate_size": 32},
}


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits[0].float()


@pytest.mark.parametrize("kind", sorted(CHANGES))
def test_quantized_models_compute_what_they_decode_to(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="pip install compressed-tensors")
    source = tmp_path / kind
    tiny.save(kind, source, **CHANGES[kind])
    target = "safetensors:int4,group_size=32,symmetric=true"
    qconv.convert(source, target, out=tmp_path)
    artifact = tmp_path / f"{kind}-INT4"
    reader = SafetensorsBackend().open(artifact)
    decoded = {name: reader.read(name) for name in reader.tensors}
    plain = tmp_path / "plain"
    shutil.copytree(source, plain)
    save_file(decoded, plain / "model.safetensors", metadata={"format": "pt"})
    expected = logits(plain)
    # Experts are decoded in bfloat16; all other weights exactly.
    bound = 2e-2 * float(expected.abs().max()) if kind in tiny.EXPERT_MODELS else 0.0
    assert float((logits(artifact) - expected).abs().max()) <= bound


@pytest.mark.parametrize("kind", tiny.EXPERT_MODELS)
def test_bitsandbytes_loads_mixtures_of_experts(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
    source = tmp_path / kind
    tiny.save(kind, source, **{**CHANGES[kind], "head_dim": 16})
    qconv.convert(source, "safetensors:nf4", out=tmp_path)
    before, after = logits(source), logits(tmp_path / f"{kind}-NF4")
    assert float((after - before).norm() / before.norm()) < 1.0  # unrelated logits: 1.4
