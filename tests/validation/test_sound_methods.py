"""What methods make that rescale norms is sound: no fault, and no gate of its weights fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qconv
from plugins.gguf_models import byte_level_files
from validation.damage import converted, faults_of, model_at, validated

TEXT = qconv.Calibration(windows=2, window_length=32, chat_template=False)
SMALL = {"hidden_size": 128, "intermediate_size": 128, "num_key_value_heads": 4}


def gemma_at(folder: Path) -> Path:
    """A Gemma of one block in bfloat16, whose norms are one more than their weights."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        head_dim=32,
        **SMALL,
        max_position_embeddings=256,
        layer_types=["full_attention"],
        architectures=["Gemma2ForCausalLM"],
    )
    model = Gemma2ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(0, 0.2)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name, data in byte_level_files().items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Callable[[str], Path]:
    known: dict[str, Path] = {}

    def by(kind: str) -> Path:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind) / "tiny"
            made: dict[str, Any] = {**SMALL, "num_hidden_layers": 1}
            known[kind] = gemma_at(folder) if kind == "gemma" else model_at(folder, **made)
        return known[kind]

    return by


@pytest.mark.parametrize(
    ("kind", "target", "method"),
    [
        ("llama", "safetensors:int8", "smoothquant"),
        ("gemma", "safetensors:int8", "smoothquant"),
        ("gemma", "safetensors:int4,group_size=32", "awq,gptq"),
        ("llama", "gguf:q8_0", "awq"),
    ],
)
def test_a_sound_artifact_of_a_method_fails_no_gate(kind, target, method, source, tmp_path):
    model = source(kind)
    artifact = converted(model, target, tmp_path / "out", method=method, calibration=TEXT)
    found = validated(artifact, model, gates={"error": 0.3})
    assert faults_of(found) == {}
    norms = [each for each in found.tensors if each.rescaled and len(each.shape) == 1]
    assert norms
    assert all(each.limit is None for each in norms)
    gates = {each.name: each.status for each in found.gates}
    assert (gates["weights"], gates["error"]) == ("pass", "pass")
    assert found.status == "unmeasured"  # nothing but predictions, which this depth has none of
