"""Tells the families of quantized checkpoints apart, by what they say of themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput

from ._section import Section, shown

if TYPE_CHECKING:
    from qconv.plugin import ModelInfo

#: Where config.json says it; the second is from before compressed-tensors came to transformers.
_KEYS = ("quantization_config", "compression_config")
#: Where AutoGPTQ and AutoAWQ said it before, and what they called what config.json calls otherwise.
_OLDER: Mapping[str, Mapping[str, str]] = {
    "quantize_config.json": {},
    "quant_config.json": {"w_bit": "bits", "q_group_size": "group_size"},
}


def is_compressed_tensors(model: ModelInfo) -> bool:
    """Whether llm-compressor or another writer of compressed-tensors made it."""
    return _method(model) == "compressed-tensors"


def is_gptq(model: ModelInfo) -> bool:
    """Whether AutoGPTQ, GPTQModel, AutoRound or another writer of GPTQ made it."""
    return _method(model) == "gptq"


def is_awq(model: ModelInfo) -> bool:
    """Whether AutoAWQ or another writer of AWQ made it."""
    return _method(model) == "awq"


def is_fp8(model: ModelInfo) -> bool:
    """Whether it is an FP8 checkpoint as DeepSeek and Qwen publish them."""
    return _method(model) == "fp8"


def is_bitsandbytes(model: ModelInfo) -> bool:
    """Whether transformers saved it with bitsandbytes."""
    return _method(model) == "bitsandbytes"


def quantization(model: ModelInfo) -> Section:
    """How the weights are quantized, wherever the checkpoint says it.

    Raises:
        UnreadableInput: it is nowhere, or no mapping.
    """
    for key in _KEYS:
        values = model.config.get(key)
        if isinstance(values, dict):
            return Section(where=f"config.json: {key}", values=values)
    for file, rename in _OLDER.items():
        values = _older(model, file)
        if values is not None:
            renamed = {rename.get(key, key): value for key, value in values.items()}
            return Section(where=file, values=renamed)
    raise UnreadableInput(
        f"config.json: {_KEYS[0]} is {shown(model.config.get(_KEYS[0]))}, but must say how the "
        "weights are quantized; get config.json anew from the model's publisher"
    )


def _method(model: ModelInfo) -> str | None:
    for key in _KEYS:
        values = model.config.get(key)
        if values is not None:
            method = values.get("quant_method") if isinstance(values, dict) else None
            # compressed-tensors and others compare without regard to case
            return method.lower() if isinstance(method, str) else None
    for file, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if _older(model, file) is not None:
            return method
    return None


def _older(model: ModelInfo, file: str) -> dict[str, Any] | None:
    """What a file of settings beside config.json says of packed weights; None for nothing."""
    if file not in model.files or not any(name.endswith(".qweight") for name in model.tensors):
        return None
    try:
        values = json.loads(model.files[file])
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
