"""Integer checkpoints decode to what their formats say, value by value."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors_encoders import (
    awq_packed,
    columns_packed,
    decoded,
    encoded,
    model_of,
    padded,
    random_codes,
    random_scales,
    rows_packed,
    source,
    stream,
    values_of,
)

from qconv.errors import UnreadableInput, Unsupported
from qconv_safetensors import qconv_sources
from qconv_safetensors._sources._bits import unpack

ROWS, COLUMNS, GROUP = 32, 64, 32
X = "model.layers.0.mlp.up_proj"


# --- packing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [1, 7, 31, 32, 33, 64, 65])
def test_dense_streams_unpack(bits: int, count: int) -> None:
    codes = random_codes(3, max(count, 2), bits)[:, :count]
    assert torch.equal(unpack(rows_packed(codes, bits), bits, count), codes.to(torch.uint8))


@pytest.mark.parametrize("bits", range(2, 9))
def test_padded_words_unpack(bits: int) -> None:
    codes = random_codes(3, 64, bits)
    words = rows_packed(codes, bits, padded)
    assert torch.equal(unpack(words, bits, 64), codes.to(torch.uint8))


# --- compressed-tensors ---------------------------------------------------------------------------


def compressed(weights: dict[str, Any], **changes: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    group |= {key: changes.pop(key) for key in ("input_activations", "targets") if key in changes}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
        **changes,
    }


def int_weights(bits: int, **changes: Any) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": GROUP,
        **changes,
    }


def packed_tensors(
    bits: int, scale: torch.Tensor, zero: torch.Tensor | None = None, pack: Any = stream
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Stored tensors of a packed weight, and its unsigned codes. zero: unsigned."""
    codes = random_codes(ROWS, COLUMNS, bits)
    tensors = {
        f"{X}.weight_packed": rows_packed(codes, bits, pack),
        f"{X}.weight_shape": torch.tensor([ROWS, COLUMNS]),
        f"{X}.weight_scale": scale,
    }
    if zero is not None:
        tensors[f"{X}.weight_zero_point"] = columns_packed(zero, bits, pack)
    return tensors, codes


@pytest.mark.parametrize("pack", [stream, padded])
@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_groups_decode(bits: int, pack: Any) -> None:
    scale = random_scales(ROWS, COLUMNS // GROUP, dtype=torch.bfloat16)
    scale[0] = -scale[0]
    tensors, codes = packed_tensors(bits, scale, pack=pack)
    found = decoded(tensors, compressed(int_weights(bits)))[f"{X}.weight"]
    half = torch.full((ROWS, COLUMNS // GROUP), 1 << (bits - 1))
    assert torch.equal(found.dequantize(), values_of(codes, half, scale, GROUP))
    assert found.grid.spec()["scale_dtype"] == "bfloat16"
    assert found.grid.name == f"int{bits}_g{GROUP}"


@pytest.mark.parametrize("pack", [stream, padded])
@pytest.mark.parametrize("bits", range(2, 9))
def test_asymmetric_groups_decode(bits: int, pack: Any) -> None:
    scale = random_scales(ROWS, COLUMNS // GROUP)
    zero = random_codes(ROWS, COLUMNS // GROUP, bits, seed=2)
    tensors, codes = packed_tensors(bits, scale, zero, pack)
    config = compressed(int_weights(bits, symmetric=False))
    found = decoded(tensors, config)[f"{X}.weight"]
    assert torch.equal(found.dequantize(), values_of(codes, zero, scale, GROUP))
    assert found.grid.name == f"uint{bits}_g{GROUP}"


def test_zero_points_of_older_writers_are_one_byte_each() -> None:
    scale = random_scales(ROWS, COLUMNS // GROUP)
    zero = random_codes(ROWS, COLUMNS // GROUP, 4, seed=2)
    tensors, codes = packed_tensors(4, scale)
    tensors[f"{X}.weight_zero_point"] = (zero - 8).to(torch.int8)
    found = decoded(tensors, compressed(int_weights(4, symmetric=False)))[f"{X}.weight"]
    assert torch.equal(found.dequantize(), values_of(codes, zero, scale, GROUP))


@pytest.mark.parametrize(
    ("strategy", "shape"), [("channel", (ROWS, 1)), ("tensor", (1,)), ("tensor", ())]
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_channel_and_tensor_scales_decode(
    strategy: str, shape: tuple[int, ...], symmetric: bool
) -> None:
    scale = random_scales(*shape)
    zero = random_codes(ROWS, 2, 4, seed=2)[:, :1] if strategy == "channel" else torch.tensor([[3]])
    tensors, codes = packed_tensors(4, scale)
    if not symmetric:
        # one value per tensor is not packed
        stored = columns_packed(zero, 4) if strategy == "channel" else (zero - 8).to(torch.int8)
        tensors[f"{X}.weight_zero_point"] = stored.reshape(shape) if not shape else stored
        if strategy == "tensor":
            tensors[f"{X}.weight_zero_point"] = stored.reshape(shape)
    weights = int_weights(4, symmetric=symmetric, strategy=strategy, group_size=None)
    found = decoded(tensors, compressed(weights))[f"{X}.weight"]
    zero = torch.full_like(zero, 8) if symmetric else zero
    grouped = scale.reshape(-1, 1)
    assert torch.equal(found.dequantize(), values_of(codes, zero, grouped, COLUMNS))
    assert found.grid.name.endswith(strategy)


@pytest.mark.parametrize(
    ("group_size", "name"), [(None, "int4_tensor"), (-1, "int4_channel"), (GROUP, "int4_g32")]
)
def test_the_strategy_is_inferred_from_the_group_size(group_size: int | None, name: str) -> None:
    shapes: dict[int | None, tuple[int, ...]] = {None: (1,), -1: (ROWS, 1), GROUP: (ROWS, 2)}
    tensors, _ = packed_tensors(4, random_scales(*shapes[group_size]))
    weights = int_weights(4, strategy=None, group_size=group_size)
    assert encoded(tensors, compressed(weights))[0].grid.name == name


@pytest.mark.parametrize("symmetric", [True, False])
def test_plain_integers_decode(symmetric: bool) -> None:
    codes = random_codes(ROWS, COLUMNS, 8)
    scale = random_scales(ROWS, 1, dtype=torch.float32)
    zero = random_codes(ROWS, 2, 8, seed=2)[:, :1] if not symmetric else torch.full((ROWS, 1), 128)
    tensors = {
        f"{X}.weight": (codes - 128).to(torch.int8),
        f"{X}.weight_scale": scale,
        f"{X}.weight_zero_point": (zero - 128).to(torch.int8),
    }
    weights = int_weights(8, symmetric=symmetric, strategy="channel", group_size=None)
    for stored in ("int-quantized", "naive-quantized"):
        found = decoded(tensors, compressed(weights, format=stored))[f"{X}.weight"]
        assert torch.equal(found.dequantize(), values_of(codes, zero, scale, COLUMNS))


def activations(**changes: Any) -> dict[str, Any]:
    return {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", **changes}


def w8a8(scale: torch.Tensor | None = None, **changes: Any) -> tuple[dict[str, Any], Any]:
    tensors = {
        f"{X}.weight": (random_codes(ROWS, COLUMNS, 8) - 128).to(torch.int8),
        f"{X}.weight_scale": random_scales(ROWS, 1, dtype=torch.bfloat16),
    }
    if scale is not None:
        tensors[f"{X}.input_scale"] = scale
    weights = int_weights(8, strategy="channel", group_size=None)
    config = compressed(weights, format="int-quantized", input_activations=activations(**changes))
    return tensors, config


def test_dynamic_activations_are_carried_over() -> None:
    found = decoded(*w8a8(dynamic=True))[f"{X}.weight"]
    assert found.activation is not None
    assert found.activation.name == "int8_token"
    assert not found.activation_parameters


def test_a_static_input_scale_is_a_parameter() -> None:
    scale = torch.tensor([0.03125], dtype=torch.bfloat16)
    found = decoded(*w8a8(scale, dynamic=False, strategy="tensor"))[f"{X}.weight"]
    assert found.activation is not None
    assert found.activation.name == "int8_tensor_static"
    assert found.activation_parameters["scale"].tolist() == [0.03125]


def test_a_static_input_zero_point_becomes_unsigned() -> None:
    tensors, config = w8a8(torch.tensor([0.5]), dynamic=False, strategy="tensor", symmetric=False)
    tensors[f"{X}.input_zero_point"] = torch.tensor([-28], dtype=torch.int8)
    found = decoded(tensors, config)[f"{X}.weight"]
    assert found.activation_parameters["zero_point"].tolist() == [100]


def test_an_input_scale_that_is_not_positive_is_refused() -> None:
    with pytest.raises(UnreadableInput, match=r"its input_scale is 0\.0, but must be positive"):
        decoded(*w8a8(torch.tensor([0.0]), dynamic=False, strategy="tensor"))


def test_a_zero_point_of_a_symmetric_input_is_refused() -> None:
    tensors, config = w8a8(torch.tensor([0.5]), dynamic=False, strategy="tensor")
    tensors[f"{X}.input_zero_point"] = torch.tensor([3], dtype=torch.int8)
    with pytest.raises(UnreadableInput, match=r"its input_zero_point is 3, but .* symmetric"):
        decoded(tensors, config)


def test_other_tensors_are_left_alone() -> None:
    tensors, _ = packed_tensors(4, random_scales(ROWS, 2))
    tensors |= {"lm_head.weight": torch.zeros(4, 4), f"{X}.bias": torch.zeros(ROWS)}
    (found,) = encoded(tensors, compressed(int_weights(4)))
    assert set(found.parts) == {f"{X}.weight_{s}" for s in ("packed", "shape", "scale")}


def test_groups_apply_by_name_then_pattern_then_class() -> None:
    names = ("model.a", "model.b", "model.c", "model.embed_tokens")
    tensors: dict[str, torch.Tensor] = {}
    bits = {"model.a": 2, "model.b": 4, "model.c": 8, "model.embed_tokens": 3}
    for name in names:
        tensors[f"{name}.weight_packed"] = rows_packed(
            random_codes(ROWS, COLUMNS, bits[name]), bits[name]
        )
        tensors[f"{name}.weight_shape"] = torch.tensor([ROWS, COLUMNS])
        tensors[f"{name}.weight_scale"] = random_scales(ROWS, 2)
    config = compressed(int_weights(8))
    config["config_groups"] |= {
        "group_1": {"targets": ["re:.*b$", "re:model.a"], "weights": int_weights(4)},
        "group_2": {"targets": ["model.a"], "weights": int_weights(2)},
        "group_3": {"targets": ["Embedding"], "weights": int_weights(3)},
    }
    found = {each.name: each.grid.name for each in encoded(tensors, config)}
    assert found == {f"{name}.weight": f"int{bits[name]}_g32" for name in names}


def test_groups_have_formats_of_their_own() -> None:
    tensors, _ = packed_tensors(4, random_scales(ROWS, 2))
    tensors["model.b.weight"] = torch.ones(ROWS, COLUMNS, dtype=torch.int8)
    tensors["model.b.weight_scale"] = random_scales(ROWS, 1)
    config = compressed(int_weights(4), format="mixed-precision")
    config["config_groups"]["group_0"]["format"] = "pack-quantized"
    config["config_groups"]["group_1"] = {
        "targets": ["model.b"],
        "format": "int-quantized",
        "weights": int_weights(8, strategy="channel", group_size=None),
    }
    found = {each.name: each.grid.name for each in encoded(tensors, config)}
    assert found == {f"{X}.weight": "int4_g32", "model.b.weight": "int8_channel"}


@pytest.mark.parametrize("order", [[-1] * COLUMNS, [k // GROUP for k in range(COLUMNS)]])
def test_a_stored_order_that_is_none_is_read(order: list[int]) -> None:
    tensors, _ = packed_tensors(4, random_scales(ROWS, 2))
    tensors[f"{X}.weight_g_idx"] = torch.tensor(order, dtype=torch.int32)
    assert f"{X}.weight_g_idx" in encoded(tensors, compressed(int_weights(4)))[0].parts


def test_columns_out_of_order_are_refused() -> None:
    tensors, _ = packed_tensors(4, random_scales(ROWS, 2))
    tensors[f"{X}.weight_g_idx"] = torch.arange(COLUMNS, dtype=torch.int32) % 2
    with pytest.raises(Unsupported, match=r"weight_g_idx': columns are not in the order of their"):
        encoded(tensors, compressed(int_weights(4)))


BAD_CONFIGS: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "no groups": (UnreadableInput, r"config_groups is \{\}, but must be", {"config_groups": {}}),
    "groups of another kind": (
        UnreadableInput,
        r"config_groups is \[1\], but must be an object",
        {"config_groups": [1]},
    ),
    "format": (Unsupported, r"format 'marlin-24' is not decoded", {"format": "marlin-24"}),
    "rotations": (
        Unsupported,
        r"transform_config applies rotations at run time",
        {"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}},
    ),
    "sparsity": (
        Unsupported,
        r"sparsity_config format 'sparse-24-bitmask' is not decoded",
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
    ),
    "ignored": (UnreadableInput, r"stored quantized, but config\.json's ignore", {"ignore": [X]}),
    "ignored by pattern": (
        UnreadableInput,
        r"stored quantized, but config\.json's ignore",
        {"ignore": ["re:.*mlp.*"]},
    ),
    "pattern": (UnreadableInput, r"target 're:\(' is no regular expr", {"ignore": ["re:("]}),
    "ignore": (UnreadableInput, r"ignore is 'x', but must be a list of strings", {"ignore": "x"}),
    "targets": (UnreadableInput, r"no group of config\.json's config_groups has", {"targets": []}),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_configs_are_refused(case: str) -> None:
    error, message, changes = BAD_CONFIGS[case]
    tensors, _ = packed_tensors(4, random_scales(ROWS, 2))
    with pytest.raises(error, match=message):
        encoded(tensors, compressed(int_weights(4), **changes))


BAD_WEIGHTS: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "bits": (Unsupported, r"type 'int' and 1 bits are not decoded", {"num_bits": 1}),
    "bits of another kind": (UnreadableInput, r"num_bits is '4', but must be", {"num_bits": "4"}),
    "truth": (UnreadableInput, r"num_bits is True, but must be a whole", {"num_bits": True}),
    "kind": (Unsupported, r"type 'float' and 4 bits are not decoded", {"type": "float"}),
    "strategy": (
        Unsupported,
        r"strategy 'tensor_group' is not decoded",
        {"strategy": "tensor_group"},
    ),
    "group": (UnreadableInput, r"group_size is None, but must be a pos", {"group_size": None}),
    "blocks": (
        Unsupported,
        r"integers with a scale per block are not decoded",
        {"strategy": "block", "block_structure": [16, 16], "group_size": None},
    ),
    "no blocks": (
        UnreadableInput,
        r"block_structure is None, but must be rows and columns",
        {"strategy": "block", "group_size": None},
    ),
    "indivisible": (Unsupported, r"64 columns are not a multiple of group", {"group_size": 48}),
    "other groups": (
        UnreadableInput,
        r"shape \(32, 2\), but .* demand \(32, 4\)",
        {"group_size": 16},
    ),
    "symmetric": (UnreadableInput, r"symmetric is 1, but must be true or", {"symmetric": 1}),
    "other bits": (UnreadableInput, r"weight_packed is \(32, 8\) words of 5-bit", {"num_bits": 5}),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_refused(case: str) -> None:
    error, message, changes = BAD_WEIGHTS[case]
    tensors, _ = packed_tensors(4, random_scales(ROWS, 2))
    with pytest.raises(error, match=message):
        encoded(tensors, compressed(int_weights(4, **changes)))


BAD_ACTIVATIONS: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "static by token": (UnreadableInput, r"dynamic is False, but must be true", {"dynamic": False}),
    "local": (Unsupported, r"dynamic 'local' \(NVFP4\) is not", {"dynamic": "local"}),
    "bits": (Unsupported, r"type 'int', 16 bits, .* not supported", {"num_bits": 16}),
    "strategy": (Unsupported, r"strategy 'head' are not supported", {"strategy": "head"}),
    "no scale": (UnreadableInput, r"input_scale': missing, but", {"strategy": "tensor"}),
}


@pytest.mark.parametrize("case", BAD_ACTIVATIONS)
def test_bad_activations_are_refused(case: str) -> None:
    error, message, changes = BAD_ACTIVATIONS[case]
    with pytest.raises(error, match=message):
        encoded(*w8a8(**changes))


def test_quantized_outputs_are_refused() -> None:
    tensors, config = w8a8(dynamic=True)
    config["config_groups"]["group_0"]["output_activations"] = activations()
    with pytest.raises(Unsupported, match=r"output_activations are quantized"):
        encoded(tensors, config)


def test_a_missing_scale_is_named() -> None:
    tensors, _ = packed_tensors(4, random_scales(ROWS, 2))
    del tensors[f"{X}.weight_scale"]
    with pytest.raises(UnreadableInput, match=r"up_proj\.weight_scale': missing, but the other"):
        encoded(tensors, compressed(int_weights(4)))


def test_a_missing_zero_point_is_named() -> None:
    tensors, _ = packed_tensors(4, random_scales(ROWS, 2))
    with pytest.raises(UnreadableInput, match=r"up_proj\.weight_zero_point': missing"):
        encoded(tensors, compressed(int_weights(4, symmetric=False)))


@pytest.mark.parametrize("shape", [[ROWS, 56], [ROWS, -1], [0, COLUMNS], [ROWS, 1 << 60]])
def test_a_shape_that_is_not_the_words_is_refused(shape: list[int]) -> None:
    tensors, _ = packed_tensors(4, random_scales(ROWS, 2))
    tensors[f"{X}.weight_shape"] = torch.tensor(shape)
    with pytest.raises(UnreadableInput, match=r"weight_shape': .*but weight_packed is \(32, 8\)"):
        encoded(tensors, compressed(int_weights(4)))


def test_a_shape_is_not_read_unless_it_is_one() -> None:
    tensors, _ = packed_tensors(4, random_scales(ROWS, 2))
    tensors[f"{X}.weight_shape"] = torch.zeros(1000, dtype=torch.int64)
    reader = source("compressed-tensors")

    def read(name: str) -> torch.Tensor:
        raise AssertionError(name)

    with pytest.raises(UnreadableInput, match=r"shape \(1000,\), but .* demand \(2,\)"):
        reader.tensors(model_of(tensors, compressed(int_weights(4))), read)


def test_packed_tensors_under_a_plain_format_are_refused() -> None:
    tensors, _ = packed_tensors(8, random_scales(ROWS, 2))
    with pytest.raises(UnreadableInput, match=r"says its format stores one byte per value"):
        encoded(tensors, compressed(int_weights(8), format="int-quantized"))


def test_plain_tensors_under_a_packed_format_are_refused() -> None:
    tensors, config = w8a8(dynamic=True)
    with pytest.raises(UnreadableInput, match=r"says its format packs values into words"):
        encoded(tensors, {**config, "format": "pack-quantized"})


def test_codes_beyond_their_bits_are_refused() -> None:
    tensors, config = w8a8(dynamic=True)
    config["config_groups"]["group_0"]["weights"]["num_bits"] = 4
    with pytest.raises(UnreadableInput, match=r"codes from -128 to 127, but 4 bits hold -8 to 7"):
        decoded(tensors, config)


def test_zero_points_of_a_symmetric_tensor_are_refused() -> None:
    zero = torch.full((ROWS, 2), 7)
    tensors, _ = packed_tensors(4, random_scales(ROWS, 2), zero)
    with pytest.raises(UnreadableInput, match=r"zero-points other than 0 are stored"):
        decoded(tensors, compressed(int_weights(4)))


def test_scales_that_are_not_finite_are_refused() -> None:
    scale = random_scales(ROWS, 2)
    scale[3, 1] = float("nan")
    tensors, _ = packed_tensors(4, scale)
    with pytest.raises(UnreadableInput, match=r"1 of 64 scales are not finite"):
        decoded(tensors, compressed(int_weights(4)))


# --- GPTQ -----------------------------------------------------------------------------------------


def gptq_config(bits: int = 4, **changes: Any) -> dict[str, Any]:
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": GROUP,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "gptq",
        **changes,
    }
    return {key: value for key, value in config.items() if value is not None}


def gptq_tensors(
    bits: int, zero: torch.Tensor, *, less: int, order: bool = True, columns: int = COLUMNS
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Stored tensors, codes (out, in) and scales (out, groups). less: 1 in version 1."""
    codes = random_codes(ROWS, columns, bits)
    scale = random_scales(ROWS, zero.shape[1])
    tensors = {
        f"{X}.qweight": columns_packed(codes.t(), bits),
        f"{X}.qzeros": rows_packed(zero.t() - less, bits),
        f"{X}.scales": scale.t().contiguous(),
    }
    if order:
        tensors[f"{X}.g_idx"] = torch.arange(columns, dtype=torch.int32) // GROUP
    return tensors, codes, scale


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize(("named", "less"), [("gptq", 1), ("gptq_v2", 0), (None, 1), (None, 0)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_gptq_decodes(bits: int, named: str | None, less: int, order: bool) -> None:
    zero = torch.full((ROWS, COLUMNS // GROUP), 1 << (bits - 1))
    tensors, codes, scale = gptq_tensors(bits, zero, less=less, order=order)
    found = decoded(tensors, gptq_config(bits, checkpoint_format=named))[f"{X}.weight"]
    assert torch.equal(found.dequantize(), values_of(codes, zero, scale, GROUP))
    assert found.grid.name == f"int{bits}_g32"


@pytest.mark.parametrize(
    ("changes", "less"),
    [
        ({"checkpoint_format": "gptq"}, 1),
        ({"checkpoint_format": "gptq_v2"}, 0),
        ({"checkpoint_format": None, "format": "gptq_v2"}, 0),
        ({"checkpoint_format": None, "meta": {"quantizer": ["gptqmodel:1.4.0"]}}, 1),
        ({"checkpoint_format": None, "provider": "auto-round"}, 1),
    ],
)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_asymmetric_gptq_decodes(bits: int, changes: dict[str, Any], less: int) -> None:
    zero = random_codes(ROWS, COLUMNS // GROUP, bits, seed=2).clamp(min=less)
    tensors, codes, scale = gptq_tensors(bits, zero, less=less)
    found = decoded(tensors, gptq_config(bits, sym=False, **changes))[f"{X}.weight"]
    assert torch.equal(found.dequantize(), values_of(codes, zero, scale, GROUP))
    assert found.grid.name == f"uint{bits}_g32"


def test_gptq_per_channel_decodes() -> None:
    zero = torch.full((ROWS, 1), 8)
    tensors, codes, scale = gptq_tensors(4, zero, less=1, order=False)
    found = decoded(tensors, gptq_config(group_size=-1))[f"{X}.weight"]
    assert torch.equal(found.dequantize(), values_of(codes, zero, scale, COLUMNS))
    assert found.grid.name == "int4_channel"


def test_modules_may_differ_by_pattern() -> None:
    zero = torch.full((ROWS, COLUMNS // GROUP), 128)
    tensors, codes, scale = gptq_tensors(8, zero, less=1)
    dynamic = {"+:.*up_proj": {"bits": 8}, "-:.*down_proj": {}, ".*": {"bits": 2}}
    found = decoded(tensors, gptq_config(4, dynamic=dynamic))[f"{X}.weight"]
    assert torch.equal(found.dequantize(), values_of(codes, zero, scale, GROUP))


def test_asymmetric_zero_points_of_no_version_are_refused_with_the_way_out() -> None:
    zero = random_codes(ROWS, 2, 4, seed=2)
    tensors, _, _ = gptq_tensors(4, zero, less=0)
    with pytest.raises(Unsupported, match=r"asymmetric ones cannot tell; set checkpoint_format to"):
        encoded(tensors, gptq_config(sym=False, checkpoint_format=None))


def test_a_wrapped_zero_point_of_version_1_is_refused() -> None:
    zero = torch.full((ROWS, 2), 16)
    tensors, _, _ = gptq_tensors(4, zero, less=1)
    with pytest.raises(Unsupported, match=r"64 zero-points are stored as 15 in GPTQ version 1"):
        decoded(tensors, gptq_config(sym=False))


@pytest.mark.parametrize(
    ("named", "stored", "message"),
    [
        ("gptq", 8, r"qzeros hold 8, but a symmetric tensor of 4 bits has 7 everywhere"),
        ("gptq_v2", 7, r"qzeros hold 7, but a symmetric tensor of 4 bits has 8 everywhere"),
        (None, 6, r"qzeros hold 6, .* has 7 \(version 1\) or 8 \(version 2\) everywhere"),
    ],
)
def test_symmetric_zero_points_of_another_version_are_refused(
    named: str | None, stored: int, message: str
) -> None:
    tensors, _, _ = gptq_tensors(4, torch.full((ROWS, 2), stored), less=0)
    with pytest.raises(UnreadableInput, match=message):
        decoded(tensors, gptq_config(checkpoint_format=named))


def test_mixed_symmetric_zero_points_are_refused() -> None:
    zero = torch.tensor([[7, 8]] * ROWS)
    tensors, _, _ = gptq_tensors(4, zero, less=0)
    with pytest.raises(UnreadableInput, match=r"qzeros hold 7 to 8, but"):
        decoded(tensors, gptq_config(checkpoint_format=None))


@pytest.mark.parametrize("act_order", [True, False])
def test_reordered_columns_are_refused(act_order: bool) -> None:
    tensors, _, _ = gptq_tensors(4, torch.full((ROWS, 2), 8), less=1)
    tensors[f"{X}.g_idx"] = torch.arange(COLUMNS, dtype=torch.int32) % 2
    look = encoded if act_order else decoded  # desc_act: known before anything is decoded
    with pytest.raises(Unsupported, match=r"up_proj\.g_idx': columns are not in the order of"):
        look(tensors, gptq_config(desc_act=act_order))


def test_act_order_within_groups_is_read() -> None:
    tensors, _, _ = gptq_tensors(4, torch.full((ROWS, 2), 8), less=1)
    assert len(encoded(tensors, gptq_config(desc_act=True))) == 1


BAD_GPTQ: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "bits": (Unsupported, r"GPTQ of 5 bits is not decoded, only of 2, 3, 4, 8", {"bits": 5}),
    "no bits": (UnreadableInput, r"bits is None, but must be a whole number", {"bits": None}),
    "other bits": (UnreadableInput, r"scales': shape \(2, 32\), but .* \(4, 32\)", {"bits": 2}),
    "group": (UnreadableInput, r"group_size is 0, but must be a positive", {"group_size": 0}),
    "ragged": (Unsupported, r"64 columns are not a multiple of group size 48", {"group_size": 48}),
    "groups": (UnreadableInput, r"scales': shape \(2, 32\), but .* \(4, 32\)", {"group_size": 16}),
    "layout": (Unsupported, r"'marlin' is not decoded", {"checkpoint_format": "marlin"}),
    "layout's kind": (UnreadableInput, r"checkpoint_format is 2, but", {"checkpoint_format": 2}),
    "marlin": (Unsupported, r"the Marlin layout is made for one", {"is_marlin_format": True}),
    "words": (Unsupported, r"pack_dtype 'int64' is not decoded", {"pack_dtype": "int64"}),
    "pattern": (UnreadableInput, r"dynamic: '\(' is no regular", {"dynamic": {"+:(": {}}}),
    "left in float": (
        UnreadableInput,
        r"stored quantized, but config\.json's dynamic leaves '\.\*up_proj' in float",
        {"dynamic": {"-:.*up_proj": {}}},
    ),
}


@pytest.mark.parametrize("case", BAD_GPTQ)
def test_bad_gptq_is_refused(case: str) -> None:
    error, message, changes = BAD_GPTQ[case]
    tensors, _, _ = gptq_tensors(4, torch.full((ROWS, 2), 8), less=1)
    with pytest.raises(error, match=message):
        encoded(tensors, gptq_config(**changes))


def test_transposed_layers_are_refused() -> None:
    tensors, _, _ = gptq_tensors(4, torch.full((ROWS, 2), 8), less=1)
    model = model_of(tensors, gptq_config())
    model.config["model_type"] = "gpt2"
    with pytest.raises(Unsupported, match=r"GPT-2's Conv1D layers hold their weights transposed"):
        source("gptq").tensors(model, lambda name: tensors[name])


def test_words_of_another_type_are_refused() -> None:
    tensors, _, _ = gptq_tensors(4, torch.full((ROWS, 2), 8), less=1)
    tensors[f"{X}.qweight"] = tensors[f"{X}.qweight"].long()
    with pytest.raises(UnreadableInput, match=r"qweight': I64 \(8, 32\), but must be I32 of 2"):
        encoded(tensors, gptq_config())


def test_words_that_hold_no_whole_number_of_values_are_refused() -> None:
    tensors, _, _ = gptq_tensors(3, torch.full((ROWS, 2), 4), less=1)
    tensors[f"{X}.qweight"] = tensors[f"{X}.qweight"][:5]
    with pytest.raises(UnreadableInput, match=r"5 words per column hold no whole number of 3-bit"):
        encoded(tensors, gptq_config(3))


# --- AWQ ------------------------------------------------------------------------------------------


def awq_config(**changes: Any) -> dict[str, Any]:
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
        **changes,
    }


def awq_tensors(
    groups: int = COLUMNS // GROUP,
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    codes = random_codes(ROWS, COLUMNS, 4)
    zero = random_codes(ROWS, 2, 4, seed=2)[:, :groups]
    scale = random_scales(ROWS, groups)
    tensors = {
        f"{X}.qweight": awq_packed(codes.t()),
        f"{X}.qzeros": awq_packed(zero.t()),
        f"{X}.scales": scale.t().contiguous(),
    }
    return tensors, codes, zero, scale


def test_awq_decodes() -> None:
    tensors, codes, zero, scale = awq_tensors()
    found = decoded(tensors, awq_config())[f"{X}.weight"]
    assert torch.equal(found.dequantize(), values_of(codes, zero, scale, GROUP))
    assert found.grid.name == "uint4_g32"


def test_awq_per_channel_decodes() -> None:
    tensors, codes, zero, scale = awq_tensors(1)
    found = decoded(tensors, awq_config(group_size=-1))[f"{X}.weight"]
    assert torch.equal(found.dequantize(), values_of(codes, zero, scale, COLUMNS))


BAD_AWQ: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "version": (Unsupported, r"version 'gemv', .* is not decoded", {"version": "gemv"}),
    "bits": (Unsupported, r"AWQ of 3 bits, version", {"bits": 3}),
    "backend": (Unsupported, r"backend 'llm-awq' is not decoded", {"backend": "llm-awq"}),
    "symmetric": (Unsupported, r"AWQ without zero-points is not decoded", {"zero_point": False}),
    "group": (UnreadableInput, r"group_size is 0, but must be a positive", {"group_size": 0}),
    "ragged": (Unsupported, r"64 columns are not a multiple of group size 48", {"group_size": 48}),
    "groups": (UnreadableInput, r"scales': shape \(2, 32\), but .* \(4, 32\)", {"group_size": 16}),
    "left out": (
        UnreadableInput,
        r"stored quantized, but config\.json's modules_to_not_convert",
        {"modules_to_not_convert": ["up_proj"]},
    ),
}


@pytest.mark.parametrize("case", BAD_AWQ)
def test_bad_awq_is_refused(case: str) -> None:
    error, message, changes = BAD_AWQ[case]
    tensors, *_ = awq_tensors()
    with pytest.raises(error, match=message):
        encoded(tensors, awq_config(**changes))


# --- families -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["compressed-tensors", "gptq", "awq", "fp8", "bitsandbytes", "hqq", None, 3]
)
def test_a_family_recognizes_its_own(method: object) -> None:
    model = model_of({}, {"quant_method": method})
    found = [spec.name for spec in qconv_sources() if spec.recognizes(model)]
    assert found == (
        [method] if method in dict.fromkeys(spec.name for spec in qconv_sources()) else []
    )


@pytest.mark.parametrize(
    ("file", "settings", "method"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": GROUP, "sym": True}, "gptq"),
        ("quant_config.json", {"w_bit": 4, "q_group_size": GROUP, "version": "GEMM"}, "awq"),
    ],
)
def test_settings_of_older_checkpoints_lie_in_a_file(
    file: str, settings: dict[str, Any], method: str
) -> None:
    tensors = gptq_tensors(4, torch.full((ROWS, 2), 8), less=1)[0]
    tensors = tensors if method == "gptq" else awq_tensors()[0]
    model = model_of(tensors, {})
    del model.config["quantization_config"]
    model = replace(model, files={file: json.dumps(settings).encode()})
    assert [spec.name for spec in qconv_sources() if spec.recognizes(model)] == [method]
    (found,) = source(method).tensors(model, lambda name: tensors[name])
    assert found.grid.spec()["group_size"] == GROUP


@pytest.mark.parametrize("data", [b"{", b"[]"])
def test_settings_that_cannot_be_read_are_none(data: bytes) -> None:
    tensors, *_ = awq_tensors()
    model = model_of(tensors, {})
    del model.config["quantization_config"]
    model = replace(model, files={"quant_config.json": data})
    assert not any(spec.recognizes(model) for spec in qconv_sources())


def test_an_older_name_of_the_settings_is_known() -> None:
    tensors, _ = packed_tensors(4, random_scales(ROWS, 2))
    model = model_of(tensors, {})
    model.config["compression_config"] = compressed(int_weights(4))
    del model.config["quantization_config"]
    assert [spec.name for spec in qconv_sources() if spec.recognizes(model)] == [
        "compressed-tensors"
    ]
    assert len(source("compressed-tensors").tensors(model, lambda name: tensors[name])) == 1


def test_a_router_left_in_float_is_not_its_neighbour() -> None:
    tensors = {name.replace("up_proj", "gate_proj"): v for name, v in awq_tensors()[0].items()}
    assert len(encoded(tensors, awq_config(modules_to_not_convert=["gate"]))) == 1


def test_specs_load_their_sources() -> None:
    for spec in qconv_sources():
        assert type(spec.load()()).__name__.endswith("Source")


def test_a_config_of_another_kind_is_refused() -> None:
    model = model_of({}, {"quant_method": "gptq"})
    model.config["quantization_config"] = "gptq"
    assert not any(spec.recognizes(model) for spec in qconv_sources())
    with pytest.raises(UnreadableInput, match=r"quantization_config is 'gptq', but must say how"):
        source("gptq").tensors(model, lambda name: torch.zeros(1))
