"""Linear layers that are a Gemm in the graph: those of OPT, and of GPT-2, stored ``(in, out)``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_driver import run, session
from onnx_sources import write_tokenizer

import qconv
from qconv_onnx._reader import OnnxReader

IDS = np.random.default_rng(0).integers(3, 160, (2, 9))

_SIZES = {"vocab_size": 160, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
_OPT = {
    "vocab_size": 160,
    "max_position_embeddings": 64,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def _saved(kind: str, folder: Path) -> Path:
    import transformers

    torch.manual_seed(0)
    config = (
        transformers.GPT2Config(**_SIZES, bos_token_id=1, eos_token_id=2)
        if kind == "gpt2"
        else transformers.OPTConfig(**_OPT)
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return _saved("gpt2", tmp_path_factory.mktemp("gpt2") / "gpt2")


@pytest.fixture(scope="module")
def opt(tmp_path_factory) -> Path:
    return _saved("opt", tmp_path_factory.mktemp("opt") / "opt")


def _logits(source: Path, artifact: Path | None) -> np.ndarray[Any, Any]:
    """Of the float model, or with the weights that the reader decodes from an artifact."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    state = model.state_dict()
    if artifact is not None:
        reader = OnnxReader(artifact)
        prefix = f"{model.base_model_prefix}."
        with torch.no_grad():
            for name in reader.tensors:
                held = state[name] if name in state else state[prefix + name]
                read = reader.read(name)
                held.copy_(read.T if _is_flipped(name) else read.reshape(held.shape))
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def _is_flipped(name: str) -> bool:
    return any(part in name for part in ("c_attn.weight", "c_proj.weight", "c_fc.weight"))


@pytest.mark.parametrize(
    ("kind", "target", "quantized", "tolerance"),
    [
        ("gpt2", "w8,accuracy_level=1", 8, 1e-4),
        ("gpt2", "int4,accuracy_level=1", 8, 1e-4),
        ("gpt2", "w8a8,accuracy_level=1", 8, 0.2),
        ("opt", "w8,accuracy_level=1", 12, 1e-4),
        ("opt", "w8a8,accuracy_level=1", 12, 0.2),
    ],
)
def test_every_linear_of_a_block_is_quantized_and_computes_as_decoded(
    request, tmp_path, kind, target, quantized, tolerance
):
    source = request.getfixturevalue(kind)
    made = qconv.convert(source, to=f"onnx:{target}", out=tmp_path, threads=1)
    plans = made.plan.targets[0].tensors.tensors
    in_blocks = [each for each in plans if ".weight" in each.name and len(each.shape) == 2]
    assert sum(each.grid is not None and _in_layer(each.name) for each in in_blocks) == quantized
    artifact = made.artifacts[0].files[0].parent
    found = run(session(artifact), IDS)["logits"]
    expected = _logits(source, artifact)
    assert np.abs(found - expected).max() <= tolerance
    assert np.abs(expected - _logits(source, None)).max() > 1e-3
    assert np.abs(expected).max() > 1


def _in_layer(name: str) -> bool:
    return ".h." in f".{name}" or ".layers." in name


@pytest.fixture
def calibration(gpt2, tmp_path) -> qconv.Calibration:
    write_tokenizer(gpt2, 160)
    rng = np.random.default_rng(1)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(" ".join(map(str, rng.integers(3, 160, 64))) for _ in range(40)))
    return qconv.Calibration(source=text, windows=32, window_length=32, chat_template=False)


@pytest.mark.parametrize("statistics", ["shared", "sequential"])
def test_gptq_of_weights_stored_transposed_loses_less_than_rounding(
    gpt2, calibration, tmp_path, statistics
):
    target = "onnx:int4,accuracy_level=1,embedding=float"
    plain = qconv.convert(gpt2, to=target, out=tmp_path / "plain", threads=1)
    better = qconv.convert(
        gpt2,
        to=target,
        method="gptq",
        calibration=calibration,
        statistics=statistics,
        out=tmp_path / "better",
        threads=1,
    )
    wanted = _logits(gpt2, None)
    lost = [
        np.linalg.norm(_logits(gpt2, made.artifacts[0].files[0].parent) - wanted)
        for made in (plain, better)
    ]
    assert lost[1] < 0.95 * lost[0]


def test_a_saved_calibration_measures_transposed_weights_as_text_does(gpt2, calibration, tmp_path):
    few = replace(calibration, windows=4)  # no more than the text path measures on
    saved = tmp_path / "saved.safetensors"
    qconv.calibrate(gpt2, saved, few, device="cpu")
    of_text, of_file = (
        qconv.convert(gpt2, to="onnx:w8a8", calibration=each, out=tmp_path / name, device="cpu")
        for name, each in (("text", few), ("file", saved))
    )
    wanted, found = (made.plan.targets[0].request.input_errors for made in (of_text, of_file))
    assert len(wanted) == 9
    assert "transformer.wte.weight" in wanted  # the head, tied
    assert found == pytest.approx(wanted, rel=1e-3)
