"""AWQ checkpoints decode to what the format says, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors_encoders import (
    COLUMNS,
    GROUP,
    X,
    awq_config,
    awq_tensors,
    decoded,
    encoded,
    values_of,
)

from qconv.errors import UnreadableInput, Unsupported


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


def test_a_router_left_in_float_is_not_its_neighbour() -> None:
    tensors = {name.replace("up_proj", "gate_proj"): v for name, v in awq_tensors()[0].items()}
    assert len(encoded(tensors, awq_config(modules_to_not_convert=["gate"]))) == 1
