"""GPTQ checkpoints of both versions decode to what the format says, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors_encoders import (
    COLUMNS,
    GROUP,
    ROWS,
    X,
    decoded,
    encoded,
    gptq_config,
    gptq_tensors,
    model_of,
    random_codes,
    source,
    values_of,
)

from qconv.errors import UnreadableInput, Unsupported


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
