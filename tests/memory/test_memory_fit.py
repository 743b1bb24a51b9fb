"""What fits a device, up to where, and what is recommended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hollow_gguf import attention_keys, attention_shapes, write_hollow
from safetensors.torch import save_file

import qconv
from qconv._host import host_of
from qconv.errors import UnreadableInput, UsageError
from qconv.memory import (
    Setting,
    Weights,
    budget_of,
    make_setting,
    predict,
    predict_artifact,
    shape_of_config,
)
from qconv.memory._verdict import judge
from qconv.plugin import BackendSpec, FormatSpec, hookimpl

MIB, GIB = 2**20, 2**30

#: Llama 3.1 of 8 billion parameters, as published.
LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}

#: Its Q4_K_M has 4.92 GB: embeddings, head, and 32 blocks of this size.
Q4_K_M = Weights(
    nbytes={
        "token_embd.weight": 295_526_400,
        "output.weight": 430_940_160,
        **{f"blk.{n}.ffn_down.weight": 131_000_000 for n in range(32)},
    }
)


def setting(**changes: Any) -> Setting:
    return make_setting("llama.cpp", **{"context": 8192, **changes})


def test_embeddings_that_are_not_tied_stay_on_the_host() -> None:
    assert Q4_K_M.on_device("llama.cpp") == Q4_K_M.total - 295_526_400
    assert Q4_K_M.on_device("vllm") == Q4_K_M.on_device("llama.cpp", "cpu") == Q4_K_M.total
    tied = Weights(nbytes={"token_embd.weight": 100, "blk.0.attn_q.weight": 10})
    assert tied.on_device("llama.cpp") == 110


def test_parts_add_up_to_the_upper_figure() -> None:
    for runtime in ("llama.cpp", "vllm", "transformers", "onnxruntime"):
        asked = make_setting(runtime, context=4096)
        result = predict(shape_of_config(LLAMA_8B), Q4_K_M, asked)
        assert sum(result.parts.values()) == result.high >= result.low
        assert result.runtime in result.assumptions[0] or runtime != "vllm"


def test_the_headroom_is_half_a_gib_or_a_twentieth() -> None:
    assert budget_of(8 * GIB, "llama.cpp") == 8 * GIB - 512 * MIB
    assert budget_of(80 * GIB, "llama.cpp") == 76 * GIB
    assert budget_of(8 * GIB, "vllm") == int(7.2 * GIB)
    assert budget_of(256 * MIB, "llama.cpp") == 0


def test_the_longest_context_is_exact() -> None:
    shape = shape_of_config(LLAMA_8B)
    _, verdict = judge(shape, Q4_K_M, setting(), 8 * GIB)
    longest = verdict.max_context
    assert longest is not None
    assert verdict.answer == "fits"
    high = predict(shape, Q4_K_M, setting(context=longest)).high
    assert high <= verdict.budget < predict(shape, Q4_K_M, setting(context=longest + 1)).high


def test_the_longest_context_is_the_same_whatever_is_asked() -> None:
    """512 tokens are a step of some runtimes; for transformers they are a whole prompt."""
    shape = shape_of_config(LLAMA_8B)
    for runtime in ("llama.cpp", "vllm", "transformers", "onnxruntime"):
        found = {
            judge(shape, Q4_K_M, make_setting(runtime, context=context), 24 * GIB)[1].max_context
            for context in (511, 512, 513, 2047, 2048, 2049)
        }
        assert len(found) == 1, (runtime, found)


def test_onnxruntime_may_hold_scores_of_every_pair_of_tokens() -> None:
    shape = shape_of_config(LLAMA_8B)
    high = predict(shape, Q4_K_M, make_setting("onnxruntime", context=4096)).high
    assert high > Q4_K_M.total + 2 * 4 * 32 * 4096**2


def test_ways_to_make_it_fit_are_told_by_what_they_give_up() -> None:
    shape = shape_of_config(LLAMA_8B)
    asked, verdict = judge(shape, Q4_K_M, setting(context=24576), 8 * GIB)
    assert asked.high > verdict.budget
    assert verdict.answer == "smaller_cache"
    assert verdict.cache_type == "q8_0"
    smaller = setting(context=24576, cache_type="q8_0")
    assert predict(shape, Q4_K_M, smaller).high <= verdict.budget

    _, verdict = judge(shape, Q4_K_M, setting(context=65536), 8 * GIB)
    assert verdict.answer == "shorter_context"
    assert verdict.cache_type is None
    assert verdict.max_context is not None
    assert verdict.max_context == 17664

    _, verdict = judge(shape, Q4_K_M, setting(), 4 * GIB)
    assert verdict.answer == "offload"
    assert verdict.max_context is None
    assert verdict.gpu_layers is not None
    assert 1 < verdict.gpu_layers < verdict.layers == 33

    _, verdict = judge(shape, Q4_K_M, setting(), GIB)
    assert verdict.answer == "no"
    assert (verdict.max_context, verdict.cache_type, verdict.gpu_layers) == (None, None, None)


def test_layers_go_to_the_device_from_the_last_with_their_keys_and_values() -> None:
    shape = shape_of_config(LLAMA_8B)
    asked = setting()
    _, verdict = judge(shape, Q4_K_M, asked, 4 * GIB)
    assert verdict.gpu_layers is not None
    per_layer = 131_000_000 + 2 * 8 * 128 * 2 * 8192
    blocks = verdict.gpu_layers - 1  # the output is the first of them
    parts = predict(shape, Q4_K_M, asked).parts
    fixed = parts["logits"] + parts["activations"] + parts["device_context"] + 430_940_160
    assert fixed + blocks * per_layer <= verdict.budget < fixed + (blocks + 1) * per_layer


def test_a_state_space_model_fits_with_any_context_or_none() -> None:
    config = {
        "model_type": "mamba", "architectures": ["MambaForCausalLM"], "hidden_size": 768,
        "num_hidden_layers": 24, "state_size": 16, "expand": 2, "conv_kernel": 4,
        "vocab_size": 50280,
    }  # fmt: skip
    shape = shape_of_config(config)
    weights = Weights(nbytes={"blk.0.ssm_in.weight": 100 * MIB})
    assert (
        predict(shape, weights, setting()).parts["kv_cache"]
        == (predict(shape, weights, setting(context=65536)).parts["kv_cache"])
    )


# --- whole models on disk -------------------------------------------------------------------------


@pytest.fixture
def no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnx, whose plans export a graph first."""
    monkeypatch.setenv("QCONV_DISABLE_PLUGINS", "onnx")


@pytest.fixture
def hollow(tmp_path: Path) -> Path:
    """Llama of 6 layers as a float16 GGUF."""
    sizes = {"layers": 6, "hidden": 256, "inner": 512, "heads": 8, "kv_heads": 2}
    shapes = attention_shapes(**sizes, width=32, vocab=1000)
    return write_hollow(tmp_path / "tiny-F16.gguf", "llama", attention_keys(**sizes), shapes)


@pytest.mark.usefixtures("no_graphs")
def test_every_format_of_every_backend_is_looked_at(smollm2_wide: Path) -> None:
    found = qconv.fit(smollm2_wide, 8 * GIB)
    targets = [option.target for option in found.options]
    assert targets[0] == "as stored"
    assert {"gguf:q4_k_m", "safetensors:int4", "safetensors:nf4"} <= set(targets)
    runtimes = {option.target: option.runtime for option in found.options}
    assert runtimes["gguf:q4_k_m"] == "llama.cpp"
    assert runtimes["safetensors:nf4"] == "transformers"
    assert found.fits


def test_sizes_are_those_of_the_plan(smollm2_wide: Path) -> None:
    found = qconv.fit(smollm2_wide, 8 * GIB, to=["gguf:q4_k_m", "safetensors:int8"])
    planned = qconv.plan(smollm2_wide, ["gguf:q4_k_m", "safetensors:int8"])
    assert [option.nbytes for option in found.options] == [each.nbytes for each in planned.targets]
    for option, target in zip(found.options, planned.targets, strict=True):
        assert option.predicted is not None
        tensors = target.to_json()["tensors"]
        assert option.predicted.parts["weights"] == sum(each["nbytes"] for each in tensors)


def test_quality_is_told_by_bits(smollm2_wide: Path) -> None:
    targets = ["gguf:bf16", "gguf:f16", "gguf:q8_0", "gguf:q6_k", "gguf:q5_k_m", "gguf:q4_k_m"]
    targets += ["gguf:q4_1", "gguf:q3_k_m", "gguf:q2_k", "safetensors:fp8"]
    found = qconv.fit(smollm2_wide, 8 * GIB, to=targets)
    assert [option.quality.name for option in found.options if option.quality] == [
        "lossless",
        "next to lossless",
        "near lossless",
        "very good",
        "good",
        "fair",
        "fair",
        "poor",
        "bad",
        "very good",  # 8 bits, but inputs in 8 bits too
    ]


@pytest.mark.usefixtures("no_graphs")
def test_where_all_fits_what_loses_nothing_is_recommended_with_something_smaller(
    smollm2_wide: Path,
) -> None:
    advice = qconv.fit(smollm2_wide, 8 * GIB).recommendation
    assert advice is not None
    assert advice.target == "gguf:bf16"
    assert advice.reason == "it fits as asked, and it loses nothing"
    assert advice.smaller == "gguf:q8_0"


def test_where_some_fit_the_least_loss_is_recommended(smollm2_wide: Path) -> None:
    # 1800 MiB less 512 of headroom: q8_0 takes 1251 at most, float16 1423
    found = qconv.fit(smollm2_wide, 1800 * MIB, runtime="llama.cpp")
    assert all(option.runtime == "llama.cpp" for option in found.options)
    advice = found.recommendation
    assert advice is not None
    assert advice.target == "gguf:q8_0"
    assert "expected to lose least of those (near lossless" in advice.reason
    assert found.fits


def test_where_nothing_fits_as_asked_the_next_best_is_recommended(smollm2_wide: Path) -> None:
    found = qconv.fit(smollm2_wide, 1400 * MIB, runtime="llama.cpp", batch=4)
    assert not found.fits
    advice = found.recommendation
    assert advice is not None
    assert advice.reason.startswith("nothing fits as asked; it does with up to")


@pytest.mark.usefixtures("no_graphs")
def test_where_nothing_fits_nothing_is_recommended(smollm2_wide: Path) -> None:
    found = qconv.fit(smollm2_wide, 64 * MIB)
    assert found.recommendation is None
    assert not found.fits


@pytest.mark.usefixtures("no_graphs")
def test_a_format_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    config = {**LLAMA_8B, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(40, 48)}, folder / "m.safetensors")
    found = qconv.fit(folder, 8 * GIB)
    reasons = {option.target: option.reason for option in found.options}
    assert "48" in (reasons["safetensors:gptq"] or "")
    assert reasons["gguf:q8_0"]


def _tiny(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_graphs_of_onnxruntime_are_looked_at_and_exported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript", reason="onnx plans export a graph")
    from qconv_onnx import _backend

    export, exported = _backend.export_graph, []
    monkeypatch.setattr(
        _backend, "export_graph", lambda *a, **k: exported.append(k) or export(*a, **k)
    )
    found = qconv.fit(_tiny(tmp_path / "tiny"), 8 * GIB, runtime="onnxruntime", context=256)
    kept = {option.target: option.predicted for option in found.options}
    per_token = 2 * 32
    for target, nbytes in (("onnx:fp32", 4), ("onnx:fp16", 2), ("onnx:w8", 4)):
        predicted = kept[target]
        assert predicted is not None, found.options
        assert predicted.parts["kv_cache"] == 2 * 256 * per_token * nbytes, target
    assert len(exported) == 1


def test_an_export_that_fails_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript", reason="onnx plans export a graph")
    from qconv.errors import Unsupported
    from qconv_onnx import _backend

    tried = []

    def fails(*_args: object, **given: object) -> None:
        tried.append(given)
        raise Unsupported("torch cannot export it")

    monkeypatch.setattr(_backend, "export_graph", fails)
    found = qconv.fit(_tiny(tmp_path / "tiny"), 8 * GIB, runtime="onnxruntime")
    reasons = {option.reason for option in found.options}
    assert (len(found.options), reasons, len(tried)) == (8, {"torch cannot export it"}, 1)


def test_a_quantized_model_is_asked_about_as_it_is(hollow: Path) -> None:
    float16 = qconv.fit(hollow, 8 * GIB)
    assert len(float16.options) > 10
    assert float16.options[0].bits_per_weight == pytest.approx(16, abs=0.1)


def test_the_usual_context_is_8192_or_what_the_model_was_made_for(smollm2_wide: Path) -> None:
    assert qconv.fit(smollm2_wide, GIB, to="gguf:q8_0").context == 8192
    short = {**LLAMA_8B, "max_position_embeddings": 2048}
    assert shape_of_config(short).context_length == 2048


def test_a_context_beyond_what_the_model_was_made_for_is_warned_of(smollm2_wide: Path) -> None:
    found = qconv.fit(smollm2_wide, 8 * GIB, to="gguf:q8_0", context=16384)
    assert found.warnings == (
        "context 16384 is longer than the 8192 tokens the model was made for",
    )
    verdict = found.options[0].verdict
    assert verdict is not None
    assert verdict.max_context == 16384


def test_an_artifact_is_predicted_by_its_path(hollow: Path) -> None:
    result = predict_artifact(hollow, context=1000)
    assert result.runtime == "llama.cpp"
    assert result.parts["kv_cache"] == 6 * 2 * 2 * 32 * 2 * 1024
    with pytest.raises(UsageError, match="not loaded by 'vllm', but by llama.cpp"):
        predict_artifact(hollow, context=1000, runtime="vllm")


def test_a_graph_of_onnx_counts_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"x" * 1000)
    (folder / "model.onnx.data").write_bytes(b"x" * 5000)
    with pytest.raises(UnreadableInput, match="put the model's config.json beside the graph"):
        predict_artifact(folder, context=128)
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    for path in (folder, folder / "model.onnx"):
        result = predict_artifact(path, context=128)
        assert (result.runtime, result.cache_type) == ("onnxruntime", "f32")
        assert result.parts["weights"] == 6000
    with pytest.raises(UsageError, match="leave --to out"):
        qconv.fit(folder, GIB, to="gguf:q8_0")


class Foreign:
    """A plugin whose backend says of no format what loads it."""

    @hookimpl
    def qconv_backends(self) -> Iterator[BackendSpec]:
        formats = (FormatSpec(name="x", summary="X"),)
        yield BackendSpec(
            name="foreign", summary="F", formats=formats, load=lambda: object, api_version=1
        )


def test_a_format_of_unknown_runtimes_says_so(
    smollm2_wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(Foreign(), "foreign")
    monkeypatch.setattr("qconv._host.load_plugins", lambda: host)
    stored, foreign = qconv.fit(smollm2_wide, 8 * GIB).options
    assert (stored.target, foreign.target, foreign.runtime) == (
        "as stored",
        "foreign:x",
        "unknown",
    )
    assert foreign.reason is not None
    assert "foreign:x: its backend names no runtime" in foreign.reason


def test_a_runtime_that_does_not_load_a_target_is_refused(smollm2_wide: Path) -> None:
    with pytest.raises(UsageError, match="gguf:q8_0: not loaded by 'vllm', but by llama.cpp"):
        qconv.fit(smollm2_wide, GIB, to="gguf:q8_0", runtime="vllm")
    with pytest.raises(UsageError, match="vram 0: give the bytes"):
        qconv.fit(smollm2_wide, 0)
