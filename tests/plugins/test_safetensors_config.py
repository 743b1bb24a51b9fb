"""What runtimes are told: config.json, its ``quantization_config``, and the companions."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from safetensors_driver import CONFIG, config, files, llama, request, settings, tensor

from qconv.errors import Unsupported
from qconv.grids import UniformGrid

if TYPE_CHECKING:
    from qconv.plugin import TensorInfo

ROUTER = tensor("model.layers.0.moe.gate.weight", 8, 256)


def test_the_source_config_is_kept_and_quantization_added() -> None:
    found = config(llama(), "int4")
    assert found.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert found == CONFIG


def test_int4_is_described_as_compressed_tensors_has_it() -> None:
    assert settings(llama(), "int4") == {
        "config_groups": {
            "group_0": {
                "format": "pack-quantized",
                "input_activations": None,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": {
                    "actorder": None,
                    "block_structure": None,
                    "dynamic": False,
                    "group_size": 128,
                    "num_bits": 4,
                    "observer": "minmax",
                    "observer_kwargs": {},
                    "strategy": "group",
                    "symmetric": False,
                    "type": "int",
                },
            }
        },
        "format": "pack-quantized",
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.20.0",
    }


def test_eight_bit_inputs_are_described_as_dynamic_by_token() -> None:
    found = settings(llama(), "int8", activations="dynamic")
    group = found["config_groups"]["group_0"]
    assert found["format"] == group["format"] == "int-quantized"
    assert (group["weights"]["strategy"], group["weights"]["group_size"]) == ("channel", None)
    inputs = group["input_activations"]
    assert (inputs["num_bits"], inputs["type"], inputs["strategy"]) == (8, "int", "token")
    assert (inputs["dynamic"], inputs["symmetric"], inputs["observer"]) == (True, True, None)


@pytest.mark.parametrize(
    ("scope", "strategy", "block", "unit", "size"),
    [
        ("channel", "channel", None, "token", None),
        ("tensor", "tensor", None, "token", None),
        ("block", "block", [128, 128], "group", 128),
    ],
)
def test_fp8_is_described_by_its_scope(scope, strategy, block, unit, size) -> None:
    found = settings(llama(), "fp8", scope=scope)
    weights = found["config_groups"]["group_0"]["weights"]
    inputs = found["config_groups"]["group_0"]["input_activations"]
    assert found["format"] == "float-quantized"
    assert (weights["type"], weights["strategy"], weights["block_structure"]) == (
        "float",
        strategy,
        block,
    )
    assert (inputs["type"], inputs["strategy"], inputs["group_size"]) == ("float", unit, size)


def test_fp8_weights_alone_have_no_inputs() -> None:
    found = settings(llama(), "fp8", activations="none")
    assert found["config_groups"]["group_0"]["input_activations"] is None


@pytest.mark.parametrize("options", [{}, {"symmetric": "true", "group_size": "channel"}])
def test_compressed_tensors_accepts_its_configs(options: dict[str, str]) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    for target in ("int4", "int8", "fp8"):
        given = {} if target == "fp8" else options
        read = quantization.QuantizationConfig.model_validate(settings(llama(), target, **given))
        assert read.quantization_status == "compressed"
        assert read.config_groups["group_0"].weights.num_bits in {4, 8}


def test_linear_modules_left_in_float_are_named() -> None:
    more = (ROUTER, tensor("mtp.layers.0.mlp.up_proj.weight", 512, 256))
    stacked = tensor("model.layers.1.mlp.experts.gate_up_proj", 8, 512, 256)
    assert settings(llama(*more, stacked), "int4")["ignore"] == [
        "lm_head",
        "model.layers.0.moe.gate",
        "model.layers.1.mlp.experts",
        "mtp.layers.0.mlp.up_proj",
    ]


HEAD = "lm_head.weight"
HALF = UniformGrid(bits=4, symmetric=True, group_size=128)
ZEROS = UniformGrid(bits=4, symmetric=False, group_size=128)


@pytest.mark.parametrize("target", ["int4", "gptq", "awq"])
def test_a_head_that_is_held_quantized_is_not_named_as_float(target: str) -> None:
    model = llama(tensor(HEAD, 1000, 256))
    held = {HEAD: HALF, "model.layers.0.mlp.up_proj.weight": HALF}
    found = settings(model, target, method=(), held=held)
    if target == "int4":
        assert "lm_head" not in found["ignore"]
        assert found["config_groups"]["group_0"]["targets"] == ["Linear", "lm_head"]
        return
    assert found["lm_head"] is True
    named = found.get("dynamic", found.get("modules_to_not_convert"))
    assert named
    assert not any("lm_head" in name for name in named)


def test_tables_that_are_held_quantized_are_named() -> None:
    held = {"model.embed_tokens.weight": HALF, "model.layers.0.mlp.up_proj.weight": HALF}
    groups = settings(llama(), "int4", method=(), held=held)["config_groups"]
    assert groups["group_0"]["targets"] == ["Linear", "model.embed_tokens"]


def test_text_that_utf_8_cannot_hold_is_written_as_it_was_read() -> None:
    model = llama(config={**CONFIG, "odd": "\ud800"})
    assert config(model, "int4")["odd"] == "\ud800"


def test_heads_by_other_names_are_left_alone_and_tables_not_mentioned() -> None:
    more = (tensor("embed_out.weight", 1000, 256), tensor("transformer.wpe.weight", 64, 256))
    assert settings(llama(*more), "int4")["ignore"] == ["embed_out", "lm_head"]


def test_gptq_is_described_twice() -> None:
    expected = {
        "bits": 4,
        "checkpoint_format": "gptq",
        "desc_act": False,
        "dynamic": {"-:^lm_head$": {}, r"-:^model\.layers\.0\.moe\.gate$": {}},
        "group_size": 128,
        "lm_head": False,
        "pack_dtype": "int32",
        "quant_method": "gptq",
        "static_groups": False,
        "sym": True,
        "true_sequential": False,
    }
    found = files(request(llama(ROUTER), "gptq"))
    assert json.loads(found["tiny-GPTQ/quantize_config.json"]) == expected
    assert json.loads(found["tiny-GPTQ/config.json"])["quantization_config"] == expected


def test_gptq_v2_says_so_and_a_whole_row_is_minus_one() -> None:
    found = settings(llama(), "gptq_v2", symmetric="false", group_size="channel", bits="8")
    assert (found["checkpoint_format"], found["sym"]) == ("gptq_v2", False)
    assert (found["group_size"], found["bits"]) == (-1, 8)


def test_awq_is_described_as_gemm() -> None:
    assert settings(llama(ROUTER), "awq", group_size="64") == {
        "bits": 4,
        "group_size": 64,
        "modules_to_not_convert": ["lm_head", "model.layers.0.moe.gate"],
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }


def test_bitsandbytes_is_described_as_transformers_writes_it() -> None:
    assert settings(llama(), "fp4", double_quant="true") == {
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": True,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": ["lm_head"],
        "llm_int8_threshold": 6.0,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
    }


def experts(layer: int, size: int = 256) -> list[TensorInfo]:
    return [
        tensor(f"model.layers.{layer}.mlp.experts.{number}.{module}.weight", size, size)
        for number in range(3)
        for module in ("up_proj", "down_proj")
    ]


@pytest.mark.parametrize("target", ["nf4", "awq", "gptq"])
def test_experts_left_in_float_are_named_by_their_layer(target: str) -> None:
    further = experts(2)  # beyond the two layers that are run
    found = settings(llama(*further), target)
    skipped = found.get("llm_int8_skip_modules", found.get("modules_to_not_convert"))
    if target != "gptq":
        assert skipped == ["lm_head", "model.layers.2.mlp.experts"]
        return
    _, merged = [key.removeprefix("-:") for key in found["dynamic"]]
    assert re.match(merged, "model.layers.2.mlp.experts")
    assert re.match(merged, "model.layers.2.mlp.experts.0.up_proj")
    assert not re.match(merged, "model.layers.2.mlp.experts_more")


def test_experts_are_named_one_by_one_where_some_are_quantized() -> None:
    first, *others = experts(0)
    found = settings(llama(first, *others), "awq", method=(), held={first.name: ZEROS})
    names = [name for name in found["modules_to_not_convert"] if ".experts" in name]
    assert names == sorted(each.name.removesuffix(".weight") for each in others)


def test_transformers_reads_its_own_settings_back() -> None:
    from transformers.utils.quantization_config import AwqConfig, BitsAndBytesConfig

    awq = AwqConfig.from_dict(settings(llama(ROUTER), "awq"))
    assert (awq.bits, awq.group_size, awq.zero_point) == (4, 128, True)
    assert awq.modules_to_not_convert == ["lm_head", "model.layers.0.moe.gate"]
    four = BitsAndBytesConfig.from_dict(settings(llama(), "nf4"))
    assert four.quantization_method() == "nf4"


@pytest.mark.parametrize("target", ["awq", "nf4"])
def test_a_float_module_that_a_runtime_cannot_tell_apart_is_refused(target: str) -> None:
    more = (
        tensor("model.layers.0.mlp.gate.weight", 8, 256),
        tensor("model.layers.0.mlp.gate.up_proj.weight", 256, 256),
    )
    with pytest.raises(
        Unsupported, match=r"module 'model.layers.0.mlp.gate' stays float, but its runtimes would"
    ):
        files(request(llama(*more), target))
    assert files(request(llama(*more), "int4"))


@pytest.mark.parametrize(
    ("target", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")]
)
def test_plain_formats_state_their_dtype_wherever_one_is_stated(target: str, dtype: str) -> None:
    nested = {**CONFIG, "quantization_config": {"old": 1}, "text_config": {"dtype": "float64"}}
    found = config(llama(config=nested), target)
    assert found["torch_dtype"] == found["text_config"]["dtype"] == dtype
    assert "quantization_config" not in found
    assert config(llama(config={"model_type": "llama"}), target)["torch_dtype"] == dtype


def test_companions_are_carried_over_but_for_stale_ones() -> None:
    companions = {
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "config.json": b"old",
        "quantize_config.json": b"old",
        "model.safetensors.index.json": b"old",
    }
    found = files(request(llama(files=companions), "int4"))
    assert sorted(found) == [
        "tiny-INT4/chat_template.jinja",
        "tiny-INT4/config.json",
        "tiny-INT4/model.safetensors",
        "tiny-INT4/tokenizer.json",
    ]
    assert found["tiny-INT4/chat_template.jinja"] == b"{{ messages }}"


@pytest.mark.parametrize(
    ("target", "options", "folder"),
    [
        ("int4", {"bits": "3"}, "tiny-INT3"),
        ("int8", {}, "tiny-INT8"),
        ("gptq_v2", {}, "tiny-GPTQ_V2"),
        ("nf4", {}, "tiny-NF4"),
        ("bf16", {}, "tiny-BF16"),
    ],
)
def test_folders_are_named_after_model_and_format(target, options, folder: str) -> None:
    assert {path.partition("/")[0] for path in files(request(llama(), target, **options))} == {
        folder
    }


def test_a_format_that_a_name_ends_in_gives_way_to_the_new_one() -> None:
    names = {"big-7b-INT4": "big-7b-AWQ", "big-GPTQ_V2": "big-AWQ", "INT4": "INT4-AWQ"}
    for name, expected in names.items():
        model = replace(llama(), name=name)
        assert {path.partition("/")[0] for path in files(request(model, "awq"))} == {expected}
