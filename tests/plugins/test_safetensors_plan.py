"""What becomes of every tensor, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from safetensors_driver import llama, plan, tensor

from qconv.errors import Unsupported, UnsupportedGrid
from qconv.grids import CodebookGrid, FloatGrid, UniformGrid

if TYPE_CHECKING:
    from qconv.plugin import TensorPlan, TensorPlans

BLOCK = "model.layers.0"


def quantized(plans: TensorPlans) -> set[str]:
    return {each.name for each in plans.tensors if each.grid is not None}


def find(plans: TensorPlans, name: str) -> TensorPlan:
    return next(each for each in plans.tensors if each.name == name)


def test_linear_weights_of_blocks_are_quantized_and_nothing_else() -> None:
    plans = plan(llama(), "int4")
    assert quantized(plans) == {
        f"model.layers.{number}.{module}.weight"
        for number in (0, 1)
        for module in (
            *(f"self_attn.{part}_proj" for part in "qkvo"),
            *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        )
    }
    up = find(plans, f"{BLOCK}.mlp.up_proj.weight")
    assert (up.action, up.storage, up.reason) == ("quantize", "uint4_g128", "a linear of a block")


def test_every_source_tensor_is_used_once_under_its_own_name() -> None:
    model = llama(tensor("lm_head.weight", 1000, 256), tensor("model.buffer", 3, dtype="I64"))
    plans = plan(model, "gptq")
    assert [each.sources for each in plans.tensors] == [(name,) for name in model.tensors]
    assert [each.name for each in plans.tensors] == list(model.tensors)


def test_tensors_left_in_float_keep_their_bytes() -> None:
    plans = plan(llama(tensor("model.odd", 3, dtype="F32")), "int4")
    odd = find(plans, "model.odd")
    assert (odd.action, odd.dtype, odd.storage) == ("copy", "raw", "F32")
    assert find(plans, "model.embed_tokens.weight").reason == "not a linear weight of a block"


def test_bitsandbytes_has_all_floats_in_the_dtype_it_computes_in() -> None:
    plans = plan(llama(tensor("model.odd", 3, dtype="F32")), "nf4")
    odd = find(plans, "model.odd")
    assert (odd.action, odd.dtype, odd.storage) == ("cast", "bfloat16", "BF16")
    assert find(plans, "model.norm.weight").action == "copy"


@pytest.mark.parametrize(
    ("target", "options", "grid"),
    [
        ("int4", {}, UniformGrid(bits=4, symmetric=False, group_size=128, scale_dtype="bfloat16")),
        (
            "int4",
            {"bits": "3", "group_size": "64", "symmetric": "true"},
            UniformGrid(bits=3, symmetric=True, group_size=64, scale_dtype="bfloat16"),
        ),
        (
            "int8",
            {},
            UniformGrid(bits=8, symmetric=True, group_size="channel", scale_dtype="bfloat16"),
        ),
        ("gptq", {}, UniformGrid(bits=4, symmetric=True, group_size=128)),
        (
            "gptq_v2",
            {"symmetric": "false", "search": "absmax"},
            UniformGrid(bits=4, symmetric=False, group_size=128, search="absmax"),
        ),
        ("awq", {}, UniformGrid(bits=4, symmetric=False, group_size=128)),
        ("fp8", {}, FloatGrid(scope="channel", scale_dtype="bfloat16", search="search")),
        (
            "fp8",
            {"scope": "block", "search": "absmax"},
            FloatGrid(scope="block", scale_dtype="bfloat16", search="absmax"),
        ),
        ("nf4", {}, CodebookGrid(codebook="nf4", block_size=64)),
        ("fp4", {"double_quant": "true"}, CodebookGrid(codebook="fp4", double_quant=True)),
    ],
)
def test_formats_and_options_choose_the_grid(target: str, options: dict[str, str], grid) -> None:
    found = find(plan(llama(), target, **options), f"{BLOCK}.mlp.up_proj.weight")
    assert found.grid == grid
    assert found.storage == grid.name


def test_scales_of_a_float16_model_are_float16() -> None:
    config = {"model_type": "llama", "dtype": "float16"}
    found = find(plan(llama(config=config), "int4"), f"{BLOCK}.mlp.up_proj.weight")
    assert found.grid is not None
    assert found.grid.spec()["scale_dtype"] == "float16"


def test_without_a_dtype_in_the_config_most_values_decide() -> None:
    found = find(plan(llama(config={}), "bf16"), "model.norm.weight")
    assert found.action == "copy"
    wide = llama(tensor("model.huge", 10_000, 1000, dtype="F16"), config={})
    up = find(plan(wide, "int4"), f"{BLOCK}.mlp.up_proj.weight")
    assert up.grid is not None
    assert up.grid.spec()["scale_dtype"] == "float16"


@pytest.mark.parametrize(
    ("target", "method", "options", "name"),
    [
        ("int8", ("rtn",), {}, None),
        ("int8", ("smoothquant", "gptq"), {}, "int8_token"),
        ("int8", ("rtn",), {"activations": "dynamic"}, "int8_token"),
        ("int8", ("smoothquant", "rtn"), {"activations": "none"}, None),
        ("int4", ("smoothquant", "rtn"), {}, None),
        ("fp8", ("rtn",), {"activations": "none"}, None),
    ],
)
def test_inputs_are_quantized_after_smoothquant_or_when_asked(
    target: str, method: tuple[str, ...], options: dict[str, str], name: str | None
) -> None:
    found = find(plan(llama(), target, method, **options), f"{BLOCK}.mlp.up_proj.weight")
    assert (found.activation and found.activation.name) == name


@pytest.mark.parametrize(
    ("scope", "unit", "size"),
    [("channel", "token", None), ("tensor", "token", None), ("block", "group", 128)],
)
def test_fp8_inputs_are_quantized_by_token_or_with_blocks_by_group(
    scope: str, unit: str, size: int | None
) -> None:
    found = find(plan(llama(), "fp8", scope=scope), f"{BLOCK}.mlp.up_proj.weight").activation
    assert found is not None
    assert (found.kind, found.scope, found.group_size, found.dynamic) == ("float", unit, size, True)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        (f"{BLOCK}.mlp.gate.weight", (8, 256), "a router stays float"),
        (f"{BLOCK}.mlp.shared_expert_gate.weight", (1, 256), "a router stays float"),
        (f"{BLOCK}.block_sparse_moe.gate.weight", (8, 256), "a router stays float"),
        (f"{BLOCK}.mixer.conv1d.weight", (256, 1, 4), "not a matrix"),
        (f"{BLOCK}.mixer.dt_proj.weight", (256, 256), "not a linear layer"),
        (f"{BLOCK}.self_attn.relative_attention_bias.weight", (32, 256), "not a linear layer"),
        (f"{BLOCK}.mlp.experts.gate_up_proj", (8, 512, 256), "not a linear weight of a block"),
        ("visual.blocks.0.attn.qkv.weight", (768, 256), "the tower for images or sound"),
        ("model.vision_tower.layers.3.fc1.weight", (512, 256), "the tower for images or sound"),
        ("mtp.layers.0.mlp.up_proj.weight", (512, 256), "predicts further tokens stays float"),
        ("model.layers.2.mlp.up_proj.weight", (512, 256), "predicts further tokens stays float"),
        ("lm_head.weight", (1000, 256), "not a linear weight of a block"),
    ],
)
def test_what_is_no_linear_of_a_block_stays_float(
    name: str, shape: tuple[int, ...], reason: str
) -> None:
    found = find(plan(llama(tensor(name, *shape)), "int4"), name)
    assert found.action == "copy"
    assert reason in found.reason


def test_experts_stored_one_by_one_are_quantized() -> None:
    name = f"{BLOCK}.mlp.experts.7.down_proj.weight"
    assert name in quantized(plan(llama(tensor(name, 256, 512)), "int4"))


@pytest.mark.parametrize("target", ["nf4", "fp4"])
def test_experts_stay_float_where_bitsandbytes_cannot_hold_them_stacked(target: str) -> None:
    name = f"{BLOCK}.mlp.experts.7.down_proj.weight"
    plans = plan(llama(tensor(name, 256, 512)), target)
    found = find(plans, name)
    assert (found.action, found.fallback_from) == ("copy", f"{target}_b64")
    assert found.reason.startswith("experts stay float: transformers stacks them")
    assert f"{BLOCK}.mlp.down_proj.weight" in quantized(plans)


def test_rows_that_groups_do_not_divide_are_refused_with_sizes_that_work() -> None:
    with pytest.raises(
        UnsupportedGrid,
        match=r"safetensors:int4: tensor 'model.layers.0.self_attn.q_proj.weight' \(and 11 more "
        r"tensors\): 192 columns are not a multiple of group size 128; group sizes that suit "
        r"every tensor: 64, 32, channel; or indivisible=float keeps such tensors in float",
    ):
        plan(llama(hidden=192), "int4")
    assert quantized(plan(llama(hidden=192), "int4", group_size="64"))


def test_rows_that_groups_do_not_divide_stay_float_when_asked() -> None:
    plans = plan(llama(hidden=192), "int4", indivisible="float")
    assert quantized(plans) == {f"model.layers.{number}.mlp.down_proj.weight" for number in (0, 1)}
    out = find(plans, f"{BLOCK}.mlp.up_proj.weight")
    assert (out.action, out.storage, out.fallback_from) == ("copy", "BF16", "uint4_g128")
    assert out.reason == "192 columns are not a multiple of group size 128"


def test_siblings_that_a_runtime_merges_stay_float_together() -> None:
    plans = plan(llama(kv=12), "awq", indivisible="float")
    assert quantized(plans) == {
        f"model.layers.{number}.{module}.weight"
        for number in (0, 1)
        for module in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    }
    query = find(plans, f"{BLOCK}.self_attn.q_proj.weight")
    assert query.fallback_from == "uint4_g128"
    assert query.reason == (
        "stored like its sibling k_proj, which must stay float: 12 rows of 4 bits do not "
        "fill whole 32-bit words as AWQ needs, only multiples of 8 do"
    )


def test_experts_of_a_layer_stay_float_together() -> None:
    experts = [
        tensor(f"{BLOCK}.mlp.experts.{number}.{module}.weight", *shape)
        for number in (0, 1)
        for module, shape in (("up_proj", (96, 256)), ("down_proj", (256, 96)))
    ]
    plans = plan(llama(*experts), "int4", indivisible="float")
    assert not [name for name in quantized(plans) if ".experts." in name]
    assert f"{BLOCK}.mlp.up_proj.weight" in quantized(plans)


def test_when_nothing_is_left_to_quantize_the_plan_is_refused() -> None:
    with pytest.raises(UnsupportedGrid, match="nothing would be left to quantize"):
        plan(llama(hidden=40, inner=40, kv=40), "nf4", indivisible="float")


@pytest.mark.parametrize("target", ["int4", "nf4", "bf16"])
@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8"])
def test_codes_of_which_nothing_tells_the_values_are_refused(target: str, dtype: str) -> None:
    more = tensor("model.layers.0.mlp.other_proj.weight", 256, 512, dtype=dtype)
    with pytest.raises(Unsupported, match=f"other_proj.weight': stored as {dtype}, and neither"):
        plan(llama(more), target)


def test_a_model_without_linear_weights_is_refused() -> None:
    model = llama(layers=0)
    with pytest.raises(Unsupported, match=r"no linear weight .* use safetensors:bf16 to copy"):
        plan(model, "int4")
    assert len(plan(model, "bf16").tensors) == 2


def test_fp8_blocks_whose_inputs_do_not_divide_are_refused() -> None:
    with pytest.raises(UnsupportedGrid, match=r"192 columns are not a multiple of 128.*scope=ch"):
        plan(llama(hidden=192), "fp8", scope="block")
    assert quantized(plan(llama(hidden=192), "fp8", scope="block", activations="none"))


def test_models_that_store_weights_transposed_are_refused_but_copied() -> None:
    model = llama(config={"model_type": "gpt2"})
    with pytest.raises(Unsupported, match=r"model_type is 'gpt2', which stores .* transposed"):
        plan(model, "int4")
    assert all(each.grid is None for each in plan(model, "bf16").tensors)


@pytest.mark.parametrize("target", ["bf16", "fp16", "fp32"])
def test_plain_formats_cast_floats_and_leave_integers(target: str) -> None:
    plans = plan(llama(tensor("model.count", 3, dtype="I64")), target)
    assert not quantized(plans)
    assert find(plans, "model.count").dtype == "raw"
    norm = find(plans, "model.norm.weight")
    assert norm.action == ("copy" if target == "bf16" else "cast")
    assert norm.reason == "plain floats"
    assert norm.fallback_from is None


@pytest.mark.parametrize("kind", [["llama"], {}, 3, None])
def test_a_model_type_that_is_no_name_is_none(kind: object) -> None:
    assert quantized(plan(llama(config={"model_type": kind}), "int4"))
