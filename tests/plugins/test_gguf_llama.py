"""Llama checkpoints: names, shapes, row orders, fates, metadata, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_driver import model_info
from gguf_models import byte_level_files, llama_config, llama_weights, save_model

from qconv import convert
from qconv.errors import UnreadableInput, Unsupported, UnsupportedGrid
from qconv.plugin import PlanRequest, TensorInfo, TensorPlan, TensorPlans
from qconv_gguf._backend import GgufBackend
from qconv_gguf._config import read_config
from qconv_gguf._llama import rotary_order
from qconv_gguf._metadata import _names
from qconv_gguf._reader import GgufReader

Write = Callable[..., Path]


def plan_model(
    config: dict[str, Any],
    weights: dict[str, torch.Tensor] | None = None,
    target: str = "f16",
    name: str = "tiny",
) -> TensorPlans:
    weights = llama_weights(config) if weights is None else weights
    model = model_info(name, config, weights, {})
    return GgufBackend().plan_tensors(PlanRequest(model=model, format=target))


def by_name(plans: TensorPlans) -> dict[str, TensorPlan]:
    return {plan.name: plan for plan in plans.tensors}


def test_every_tensor_has_its_name_in_llama_cpps_order() -> None:
    plans = plan_model(llama_config(num_hidden_layers=11, attention_bias=True))
    names = [plan.name for plan in plans.tensors]
    assert names[:3] == ["output.weight", "output_norm.weight", "token_embd.weight"]
    assert names[3:16] == [
        f"blk.0.{name}"
        for name in (
            "attn_k.bias",
            "attn_k.weight",
            "attn_norm.weight",
            "attn_output.bias",
            "attn_output.weight",
            "attn_q.bias",
            "attn_q.weight",
            "attn_v.bias",
            "attn_v.weight",
            "ffn_down.weight",
            "ffn_gate.weight",
            "ffn_norm.weight",
            "ffn_up.weight",
        )
    ]
    assert names[-1] == "blk.10.ffn_up.weight"
    assert len(names) == 3 + 11 * 13


def test_vectors_stay_in_32_bits_and_matrices_are_cast() -> None:
    plans = by_name(plan_model(llama_config(attention_bias=True)))
    norm, bias = plans["blk.0.attn_norm.weight"], plans["blk.0.attn_q.bias"]
    assert [(p.storage, p.action, p.dtype) for p in (norm, bias)] == [
        ("F32", "copy", "float32")
    ] * 2
    matrix = plans["blk.0.attn_q.weight"]
    assert (matrix.storage, matrix.action, matrix.dtype) == ("F16", "cast", "float16")


def test_queries_and_keys_are_reordered_and_nothing_else() -> None:
    plans = by_name(plan_model(llama_config(attention_bias=True)))
    for name, plan in plans.items():
        rotary = name.endswith(("attn_q.weight", "attn_k.weight"))
        assert (plan.row_order is not None) == rotary, name
    keys = plans["blk.0.attn_k.weight"].row_order
    assert keys is not None
    assert keys.label == "rotary halves interleaved, 2 heads"
    assert len(keys.index) == 128


def test_biases_of_queries_and_keys_follow_their_rows_through_the_host(tmp_path: Path) -> None:
    config = llama_config(attention_bias=True, num_hidden_layers=1)
    folder = save_model(tmp_path / "tiny", config, byte_level_files())
    convert(folder, to="gguf:f32", out=tmp_path / "out")
    reader = GgufReader(tmp_path / "out" / "tiny-F32.gguf")
    weights = llama_weights(config)
    for name, heads in (("q", 4), ("k", 2)):
        bias = weights[f"model.layers.0.self_attn.{name}_proj.bias"]
        order = torch.tensor(list(rotary_order(heads, 64).index))
        assert torch.equal(reader.read(f"blk.0.attn_{name}.bias"), bias[order])
        plan = by_name(plan_model(config))[f"blk.0.attn_{name}.bias"]
        assert plan.reason == f"vectors stay in 32 bits; rotary halves interleaved, {heads} heads"
    value = weights["model.layers.0.self_attn.v_proj.bias"]
    assert torch.equal(reader.read("blk.0.attn_v.bias"), value)


def test_rotary_order_interleaves_the_halves_of_each_head() -> None:
    assert list(rotary_order(2, 6).index) == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    weight = torch.arange(4 * 64)
    expected = weight.reshape(4, 2, 32).transpose(1, 2).reshape(-1)
    assert torch.equal(weight[torch.tensor(list(rotary_order(4, 64).index))], expected)


def test_rotary_buffers_and_a_tied_head_are_dropped_with_the_reason() -> None:
    config = llama_config(tie_word_embeddings=True)
    weights = llama_weights(config)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(32)
    weights["model.rotary_emb.inv_freq"] = torch.ones(32)
    plans = plan_model(config, weights)
    assert {drop.name for drop in plans.dropped} == weights.keys() - {
        source for plan in plans.tensors for source in plan.sources
    }
    reasons = {drop.name: drop.reason for drop in plans.dropped}
    assert "tie_word_embeddings" in reasons["lm_head.weight"]
    assert "rope_theta" in reasons["model.rotary_emb.inv_freq"]


def test_unknown_tensors_are_left_to_the_host() -> None:
    weights = llama_weights(llama_config()) | {"model.layers.0.extra.weight": torch.ones(2, 2)}
    plans = plan_model(llama_config(), weights)
    told = {source for plan in plans.tensors for source in plan.sources}
    assert weights.keys() - told == {"model.layers.0.extra.weight"}
    assert plans.dropped == ()


def test_biases_that_the_config_does_not_know_are_left_to_the_host() -> None:
    weights = llama_weights(llama_config(attention_bias=True))
    plans = plan_model(llama_config(), weights)
    told = {source for plan in plans.tensors for source in plan.sources}
    assert all(name.endswith(".bias") for name in weights.keys() - told)
    assert len(weights.keys() - told) == 8


def test_llama3_scaling_generates_frequency_factors() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plans = plan_model(llama_config(rope_theta=500000.0, rope_scaling=scaling, head_dim=128))
    plan = by_name(plans)["rope_freqs.weight"]
    assert (plan.action, plan.storage, plan.shape, plan.sources) == ("generate", "F32", (64,), ())
    assert plan.values is not None
    # as published in GGUF files of Llama 3.1: 1 up to pair 28, then rising to 8
    assert plan.values[:29] == (1.0,) * 29
    assert plan.values[36:] == (8.0,) * 28
    assert all(1 < value < 8 for value in plan.values[29:35])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", r"up_proj.weight': missing, .*shape \(512, 256\)"),
        ("model.norm.weight", r"'model.norm.weight': missing"),
        ("lm_head.weight", r"missing.*set tie_word_embeddings if the embedding serves as output"),
        ("model.layers.0.self_attn.k_proj.bias", r"k_proj.bias': missing"),
    ],
)
def test_a_missing_tensor_is_named(name: str, message: str) -> None:
    config = llama_config(attention_bias=True)
    weights = llama_weights(config)
    del weights[name]
    with pytest.raises(UnreadableInput, match=message):
        plan_model(config, weights)


def test_a_tensor_of_another_shape_is_named() -> None:
    weights = llama_weights(llama_config())
    weights["model.layers.0.self_attn.q_proj.weight"] = torch.ones(128, 256)
    message = r"q_proj.weight': shape \(128, 256\), but config.json demands \(256, 256\)"
    with pytest.raises(UnreadableInput, match=message):
        plan_model(llama_config(), weights)


def test_a_tensor_of_integers_is_refused() -> None:
    model = model_info("tiny", llama_config(), llama_weights(llama_config()), {})
    name = "model.norm.weight"
    tensors = dict(model.tensors) | {name: replace(model.tensors[name], dtype="I8")}
    request = PlanRequest(model=replace(model, tensors=tensors), format="f16")
    with pytest.raises(Unsupported, match=r"'model.norm.weight': dtype I8 is not one of F64"):
        GgufBackend().plan_tensors(request)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel cannot be written"),
        ({"architectures": None, "model_type": "opt"}, "architecture model_type 'opt' cannot"),
        ({"num_local_experts": 8}, "a mixture of 8 experts is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantized already"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not what llama.cpp's llama computes"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "rope scaling 'dynamic'"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16}},
            r"YaRN with beta_fast, beta_slow \(16, 1.0\)",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Unsupported, match=message):
        plan_model(llama_config(**changes), llama_weights(llama_config()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size is None, but must be a whole number above 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x', but must be a number"),
        ({"num_key_value_heads": 3}, "4 heads over 3 key-value heads"),
        ({"head_dim": 63}, "of 63 features; heads must be"),
        ({"rope_theta": -1.0}, "rope parameter rope_theta is -1.0"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope parameter factor is None"),
        ({"rope_scaling": [2.0]}, r"rope parameters are \[2.0\], but must be an object"),
    ],
)
def test_an_impossible_config_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnreadableInput, match=message):
        read_config(llama_config(**changes))


def test_an_architecture_is_recognised_by_its_model_type_too() -> None:
    config = llama_config(architectures=None, model_type="mistral", sliding_window=64)
    assert read_config(config).context == 64


def test_a_sliding_window_bounds_the_context() -> None:
    mistral = {"architectures": ["MistralForCausalLM"], "max_position_embeddings": 32768}
    assert read_config(llama_config(**mistral)).context == 4096
    assert read_config(llama_config(**mistral, sliding_window=None)).context == 32768
    assert read_config(llama_config(**mistral, sliding_window=65536)).context == 32768


def test_a_value_beyond_float16_is_refused() -> None:
    plan = by_name(plan_model(llama_config()))["blk.0.attn_q.weight"]
    with pytest.raises(UnsupportedGrid, match=r"attn_q.weight': a value is beyond float16"):
        GgufBackend().encode(plan, torch.full((1, 256), 1e6))


def test_an_empty_tensor_is_refused() -> None:
    plan = by_name(plan_model(llama_config()))["blk.0.attn_q.weight"]
    with pytest.raises(UnreadableInput, match="an empty tensor cannot be written"):
        GgufBackend().encode(plan, torch.zeros(0, 256))


def test_encoding_leaves_its_input_alone() -> None:
    plan = by_name(plan_model(llama_config()))["blk.0.attn_q.weight"]
    value = torch.randn(2, 256)
    before = value.clone()
    (data,) = GgufBackend().encode(plan, value)
    assert bytes(data) == value.half().numpy().tobytes()
    assert torch.equal(value, before)


def test_the_reader_gives_the_weights_back(tmp_path: Path, write_gguf: Write) -> None:
    config = llama_config()
    folder = save_model(tmp_path / "tiny", config, byte_level_files())
    weights = llama_weights(config)
    reader = GgufBackend().open(write_gguf(folder, "f32"))
    assert reader.tensors["blk.1.ffn_down.weight"].shape == (256, 512)
    assert reader.tensors["blk.1.ffn_down.weight"].dtype == "F32"
    down = weights["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(reader.read("blk.1.ffn_down.weight"), down)
    queries = weights["model.layers.1.self_attn.q_proj.weight"]
    order = torch.tensor(list(rotary_order(4, 64).index))
    assert torch.equal(reader.read("blk.1.attn_q.weight"), queries[order])


def test_an_unsound_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for data in (b"", b"GGUF", b"not a gguf file at all, but long enough to look at"):
        path.write_bytes(data)
        with pytest.raises(UnreadableInput, match=r"x\.gguf: not a sound GGUF file"):
            GgufBackend().open(path)
    with pytest.raises(UnreadableInput, match=r"missing\.gguf: not a sound GGUF file"):
        GgufBackend().open(tmp_path / "missing.gguf")


def test_file_name_and_metadata(tmp_path: Path, write_gguf: Write) -> None:
    files = byte_level_files() | {"generation_config.json": b'{"top_k": 20, "temperature": 0.5}'}
    folder = save_model(tmp_path / "smol-1.4M-instruct", llama_config(), files)
    path = write_gguf(folder, "bf16")
    assert path.name == "smol-1.4M-instruct-BF16.gguf"
    reader = GgufReader(path)
    found = {k: v for k, v in reader.metadata.items() if not k.startswith(("tokenizer", "GGUF"))}
    assert found == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.sampling.top_k": 20,
        "general.sampling.temp": 0.5,
        "general.name": "Smol 1.4M Instruct",
        "general.finetune": "instruct",
        "general.basename": "smol",
        "general.size_label": "1.4M",
        "llama.block_count": 2,
        "llama.context_length": 256,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.attention.key_length": 64,
        "llama.attention.value_length": 64,
        "llama.vocab_size": 512,
        "llama.rope.dimension_count": 64,
        "general.file_type": 32,
        "general.quantization_version": 2,
    }


def test_equal_inputs_give_equal_bytes(tmp_path: Path, write_gguf: Write) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(), byte_level_files())
    first = write_gguf(folder, "f16").read_bytes()
    assert write_gguf(folder, "f16").read_bytes() == first
    assert str(tmp_path).encode() not in first


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("tiny", 134_515_008, "name=Tiny size_label=135M"),
        ("", 7e4, "name=model size_label=70K"),
        ("smollm2-135m", 134_515_008, "name=Smollm2 135m basename=smollm2 size_label=135M"),
        (
            "Mistral-7B-v0.3",
            7.2e9,
            "name=Mistral 7B v0.3 version=v0.3 basename=Mistral size_label=7B",
        ),
        # a size that the weights belie is no size
        ("smol-16k", 1.2e9, "name=Smol 16k finetune=16k basename=smol size_label=1.2B"),
    ],
)
def test_names_are_read_as_llama_cpps_converter_reads_them(
    name: str, weights: float, expected: str
) -> None:
    info = TensorInfo(name="w", shape=(int(weights),), dtype="F32", nbytes=0)
    model = replace(model_info(name, {}, {}, {}), tensors={"w": info})
    found = {key.removeprefix("general."): entry.value for key, entry in _names(model).items()}
    assert " ".join(f"{key}={text}" for key, text in found.items()) == expected
