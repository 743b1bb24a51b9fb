"""Every family of quantized checkpoints is told apart by what it says of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors_encoders import (
    GROUP,
    ROWS,
    awq_tensors,
    compressed,
    gptq_tensors,
    int_weights,
    model_of,
    packed_tensors,
    random_scales,
    source,
)

from qconv.errors import UnreadableInput
from qconv_safetensors import qconv_sources


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


def test_specs_load_their_sources() -> None:
    for spec in qconv_sources():
        assert type(spec.load()()).__name__.endswith("Source")


def test_a_config_of_another_kind_is_refused() -> None:
    model = model_of({}, {"quant_method": "gptq"})
    model.config["quantization_config"] = "gptq"
    assert not any(spec.recognizes(model) for spec in qconv_sources())
    with pytest.raises(UnreadableInput, match=r"quantization_config is 'gptq', but must say how"):
        source("gptq").tensors(model, lambda name: torch.zeros(1))
