"""Packed and plain integers of compressed-tensors decode to what the format says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors_encoders import (
    COLUMNS,
    GROUP,
    ROWS,
    X,
    columns_packed,
    compressed,
    decoded,
    encoded,
    int_weights,
    model_of,
    packed_tensors,
    padded,
    random_codes,
    random_scales,
    rows_packed,
    source,
    stream,
    values_of,
)

from qconv.errors import UnreadableInput, Unsupported
from qconv_safetensors._sources._bits import unpack


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
    "pattern": (UnreadableInput, r"config: '\(' is no regular expr", {"ignore": ["re:("]}),
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


def test_a_weight_stored_twice_is_refused() -> None:
    tensors, _ = packed_tensors(4, random_scales(ROWS, 2))
    tensors[f"{X}.weight"] = torch.ones(ROWS, COLUMNS)
    with pytest.raises(UnreadableInput, match=r"up_proj\.weight': stored as it is and as 'model"):
        encoded(tensors, compressed(int_weights(4)))


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
