"""Quantized files: llama.cpp's own bytes on request, sane logits, honest plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_driver import fill, model_info, read_gguf
from gguf_models import byte_level_files, llama_config, llama_weights, save_model

from llama_oracle import TYPES, ggml_quantize
from qconv.plugin import PlanRequest, TensorPlan
from qconv.tensors import QuantTensor
from qconv_gguf._backend import GgufBackend
from qconv_gguf._llama_cpp import LlamaCpp
from qconv_gguf._reader import GgufReader

Write = Callable[..., Path]
IDS = [3 + 7 * n % 500 for n in range(64)]
SMALL = llama_config(num_hidden_layers=1)


def plans_of(
    target: str, config: dict[str, Any], *, importance: bool = False, **options: str
) -> dict[str, TensorPlan]:
    model = model_info("tiny", config, llama_weights(config), {})
    request = PlanRequest(model=model, format=target, options=options, importance=importance)
    return {plan.name: plan for plan in GgufBackend().plan_tensors(request).tensors}


@pytest.mark.parametrize("name", TYPES)
def test_llama_cpps_search_gives_its_bytes(name: str) -> None:
    target = {"q3_k": "q3_k_s", "q4_k": "q4_k_s", "q5_k": "q5_k_s"}.get(name, name)
    plan = plans_of(target, SMALL, search="ggml")["blk.0.attn_q.weight"]
    assert (plan.storage, plan.action) == (name.upper(), "quantize")
    weights = llama_weights(SMALL)
    (data,) = GgufBackend().encode(plan, fill(plan, weights))
    order = list(plan.row_order.index) if plan.row_order else []
    expected = ggml_quantize(name, weights[plan.sources[0]].numpy()[order])
    assert bytes(data) == expected.tobytes()


def test_rows_encode_alone_as_they_do_together() -> None:
    plan = plans_of("q4_k_m", SMALL)["blk.0.ffn_up.weight"]
    whole = fill(plan, llama_weights(SMALL))
    assert isinstance(whole, QuantTensor)
    backend = GgufBackend()
    (together,) = backend.encode(plan, whole)
    parts = [
        backend.encode(plan, whole.take_rows(range(at, at + 64)))[0] for at in range(0, 512, 64)
    ]
    assert b"".join(bytes(part) for part in parts) == bytes(together)


def test_the_reader_decodes_what_the_grid_says(tmp_path: Path, write_gguf: Write) -> None:
    folder = save_model(tmp_path / "tiny", SMALL, byte_level_files())
    reader = GgufReader(write_gguf(folder, "q4_k_m"))
    weights = llama_weights(SMALL)
    for name, plan in plans_of("q4_k_m", SMALL).items():
        value = fill(plan, weights)
        expected = value.dequantize() if isinstance(value, QuantTensor) else value.float()
        assert reader.tensors[name].dtype == plan.storage
        assert torch.equal(reader.read(name).reshape(expected.shape), expected), name


#: Format -> KL divergence from the float file, in nats, that random weights stay below.
BOUNDS = {"q8_0": 0.003, "q6_k": 0.01, "q5_0": 0.06, "q4_k_m": 0.1, "q2_k": 1.0}


def test_more_bits_diverge_less(
    tmp_path: Path, write_gguf: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'qconv[llama-cpp]'")
    folder = save_model(tmp_path / "tiny", llama_config(), byte_level_files())

    def log_probabilities(target: str) -> torch.Tensor:
        with LlamaCpp(write_gguf(folder, target)) as llama:
            return torch.log_softmax(llama.logits(IDS), -1)

    exact = log_probabilities("f32")
    found = {}
    for target in BOUNDS:
        near = log_probabilities(target)
        found[target] = float((exact.exp() * (exact - near)).sum(-1).mean())
    with capsys.disabled():
        print("\n  KL divergence:", {key: round(value, 5) for key, value in found.items()})
    assert list(found.values()) == sorted(found.values())
    assert all(found[target] < BOUNDS[target] for target in BOUNDS)


def test_fallbacks_are_in_the_plan() -> None:
    config = llama_config(hidden_size=192, intermediate_size=320, num_attention_heads=3)
    config |= {"num_key_value_heads": 1, "num_hidden_layers": 1}
    plans = plans_of("q4_k_m", config)
    plan = plans["blk.0.ffn_up.weight"]
    assert (plan.storage, plan.fallback_from) == ("Q5_0", "Q4_K")
    assert plan.grid is not None
    assert plan.grid.name == "q5_0"
    assert "192 columns do not divide by 256" in plan.reason
    assert plans["blk.0.attn_norm.weight"].fallback_from is None


def test_importance_changes_the_mixture() -> None:
    config = llama_config(num_hidden_layers=8)
    assert plans_of("q4_0", config)["blk.0.ffn_down.weight"].storage == "Q4_0"
    assert plans_of("q4_0", config, importance=True)["blk.0.ffn_down.weight"].storage == "Q4_1"


def test_search_reaches_the_grid() -> None:
    for search in ("default", "ggml"):
        for name in ("token_embd.weight", "blk.0.attn_q.weight"):
            grid = plans_of("q4_k_m", SMALL, search=search)[name].grid
            assert grid is not None
            assert grid.spec()["search"] == search


def test_a_quantized_source_is_requantized_where_types_differ(
    tmp_path: Path, write_gguf: Write
) -> None:
    folder = save_model(tmp_path / "tiny", SMALL, byte_level_files())
    model, _, raw = read_gguf(write_gguf(folder, "q8_0"))
    plans = GgufBackend().plan_tensors(PlanRequest(model=model, format="q4_k_s")).tensors
    assert {plan.action for plan in plans if plan.name.endswith("_norm.weight")} == {"copy"}
    assert {plan.action for plan in plans if "ffn_up" in plan.name} == {"quantize"}
    same = GgufBackend().plan_tensors(PlanRequest(model=model, format="q8_0")).tensors
    assert {(plan.action, plan.dtype) for plan in same} == {("copy", "raw")}
    (data,) = GgufBackend().encode(same[0], raw[same[0].name])
    assert np.array_equal(np.frombuffer(data, np.uint8), raw[same[0].name].numpy().reshape(-1))
