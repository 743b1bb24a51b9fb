"""``serve=vllm:tp=N``: shards that vLLM could not load are refused before anything is written."""

from __future__ import annotations

import pytest
from safetensors_driver import CONFIG, llama, plan, tensor

from qconv.errors import Unsupported

FITTING = {"hidden": 512, "inner": 1024, "kv": 256}


@pytest.mark.parametrize("target", ["int4", "int8", "fp8", "gptq", "gptq_v2", "awq", "bf16"])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_shapes_that_fit_are_planned(target: str, devices: int) -> None:
    assert plan(llama(**FITTING), target, serve=f"vllm:tp={devices}").tensors


def test_one_device_is_meant_when_none_is_named() -> None:
    assert plan(llama(), "int4", serve="vllm").tensors


def test_groups_must_end_where_a_row_parallel_shard_does() -> None:
    with pytest.raises(
        Unsupported,
        match=r"safetensors:int4: serve=vllm:tp=4: tensor 'model.layers.0.self_attn.o_proj.weight':"
        r" a shard is \(256, 64\): groups of 128 columns do not end where it does; "
        "vllm:tp=1 or 2 would do",
    ):
        plan(llama(inner=1024, layers=1), "int4", serve="vllm:tp=4")
    assert plan(llama(inner=1024, layers=1), "int4", serve="vllm:tp=4", group_size="64").tensors


def test_heads_must_split_evenly() -> None:
    with pytest.raises(Unsupported, match=r"4 attention heads cannot be split over 3 devices"):
        plan(llama(), "bf16", serve="vllm:tp=3")


def test_fewer_key_value_heads_than_devices_are_copied() -> None:
    config = {**CONFIG, "num_attention_heads": 8, "num_key_value_heads": 2}
    assert plan(llama(**FITTING, config=config), "int4", serve="vllm:tp=4").tensors
    odd = {**CONFIG, "num_attention_heads": 12, "num_key_value_heads": 3}
    with pytest.raises(Unsupported, match="3 key-value heads can be neither split over nor copied"):
        plan(llama(config=odd), "bf16", serve="vllm:tp=4")


def test_zero_points_of_a_shard_must_fill_whole_words() -> None:
    with pytest.raises(Unsupported, match="zero-points of its 4 rows do not fill whole packed"):
        plan(llama(**{**FITTING, "kv": 8}), "int4", serve="vllm:tp=2")


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("int4", {"bits": "3"}, "Marlin computes 4-bit weights and 8-bit ones .* not uint3_g128"),
        ("int8", {"symmetric": "false"}, "8-bit ones without zero-points, not uint8_channel"),
        ("gptq_v2", {"symmetric": "false"}, "vLLM reads GPTQ without zero-points only"),
        ("gptq", {"bits": "2"}, "not int2_g128 .*; choose other options, or leave"),
    ],
)
def test_grids_without_a_kernel_are_refused(
    target: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(Unsupported, match=words):
        plan(llama(), target, serve="vllm:tp=1", **options)


def test_fp8_blocks_must_end_where_shards_do() -> None:
    options = {"scope": "block"}
    assert plan(llama(**FITTING), "fp8", serve="vllm:tp=2", **options).tensors
    with pytest.raises(Unsupported, match="blocks of 128 rows do not end where its 64 do"):
        plan(llama(**{**FITTING, "inner": 256}), "fp8", serve="vllm:tp=4", **options)
    with pytest.raises(Unsupported, match="tensor 'model.layers.0.self_attn.k_proj.weight': .* 64"):
        plan(llama(kv=64), "fp8", serve="vllm:tp=1", **options)


def test_experts_need_a_hidden_size_that_the_kernel_takes() -> None:
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    shapes = {"hidden": 320, "inner": 512, "kv": 64}
    model = llama(tensor(name, 256, 320), **shapes)
    assert plan(llama(**shapes), "int4", group_size="64", serve="vllm:tp=1").tensors
    with pytest.raises(Unsupported, match="kernel for experts needs a hidden size that 128"):
        plan(model, "int4", group_size="64", serve="vllm:tp=1")


def test_a_layer_that_vllm_may_split_either_way_is_refused() -> None:
    name = "model.layers.0.mixer.in_proj.weight"
    with pytest.raises(Unsupported, match=f"tensor '{name}': how vLLM splits it is not known"):
        plan(llama(tensor(name, 512, 256)), "int4", serve="vllm:tp=2")
    assert plan(llama(tensor(name, 512, 256)), "int4", serve="vllm:tp=1").tensors


def test_a_column_parallel_layer_must_split_evenly() -> None:
    with pytest.raises(Unsupported, match="1023 rows cannot be split over 2 devices"):
        plan(llama(inner=1023), "int8", serve="vllm:tp=2")


def test_a_row_parallel_layer_must_split_evenly() -> None:
    config = {**CONFIG, "num_attention_heads": 6, "num_key_value_heads": 3}
    odd = tensor("model.layers.0.mlp.fc2.weight", 384, 512)
    model = llama(odd, config=config, hidden=384, kv=192, inner=384)
    with pytest.raises(Unsupported, match="512 columns cannot be split over 3 devices"):
        plan(model, "int8", serve="vllm:tp=3")
