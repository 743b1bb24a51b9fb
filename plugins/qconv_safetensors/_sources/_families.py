"""Tells the families of quantized checkpoints apart, by ``quant_method`` in config.json."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.errors import UnreadableInput

from ._section import Section, shown

if TYPE_CHECKING:
    from qconv.plugin import ModelInfo


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
    """``quantization_config`` of config.json.

    Raises:
        UnreadableInput: it is missing, or no mapping.
    """
    values = model.config.get("quantization_config")
    if not isinstance(values, dict):
        raise UnreadableInput(
            f"config.json: quantization_config is {shown(values)}, but must say how the weights "
            "are quantized; get config.json anew from the model's publisher"
        )
    return Section(where="config.json: quantization_config", values=values)


def _method(model: ModelInfo) -> str | None:
    values = model.config.get("quantization_config")
    method = values.get("quant_method") if isinstance(values, dict) else None
    # compressed-tensors and others compare without regard to case
    return method.lower() if isinstance(method, str) else None
