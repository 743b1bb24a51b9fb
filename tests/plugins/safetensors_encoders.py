"""Quantized checkpoints written value by value, as their formats say: slow, plain, independent."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from qconv.plugin import EncodedTensor, ModelInfo, Source, TensorInfo

if TYPE_CHECKING:
    from qconv.tensors import QuantTensor

DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}

SOURCES = {
    "compressed-tensors": ("_compressed_tensors", "CompressedTensorsSource"),
    "gptq": ("_gptq", "GptqSource"),
    "awq": ("_awq", "AwqSource"),
    "fp8": ("_fp8", "Fp8Source"),
    "bitsandbytes": ("_bitsandbytes", "BitsAndBytesSource"),
}


def source(method: str) -> Source:
    """The source of a quant_method."""
    module, name = SOURCES[method]
    return getattr(importlib.import_module(f"qconv_safetensors._sources.{module}"), name)()


def model_of(tensors: Mapping[str, torch.Tensor], config: dict[str, Any]) -> ModelInfo:
    """A checkpoint of ``tensors`` whose quantization_config is ``config``."""
    infos = {
        name: TensorInfo(
            name=name,
            shape=tuple(value.shape),
            dtype=DTYPES[value.dtype],
            nbytes=value.numel() * value.element_size(),
        )
        for name, value in tensors.items()
    }
    return ModelInfo(
        kind="safetensors",
        name="tiny",
        config={"model_type": "llama", "quantization_config": config},
        tensors=infos,
        files={},
        metadata={},
    )


def encoded(tensors: Mapping[str, torch.Tensor], config: dict[str, Any]) -> list[EncodedTensor]:
    """What the source finds."""
    reader = source(config["quant_method"])
    return list(reader.tensors(model_of(tensors, config), lambda name: tensors[name]))


def decoded(tensors: Mapping[str, torch.Tensor], config: dict[str, Any]) -> dict[str, QuantTensor]:
    """Every quantized tensor, decoded; checked to be the same after copying its parts."""
    reader = source(config["quant_method"])
    found = {}
    for each in encoded(tensors, config):
        parts = {name: tensors[name].clone() for name in each.parts}
        kept = {name: value.clone() for name, value in parts.items()}
        found[each.name] = reader.decode(each, parts)
        assert found[each.name].shape == each.shape
        assert all(
            torch.equal(_bytes(parts[name]), _bytes(value)) for name, value in kept.items()
        ), "the parts were modified"
    return found


def stream(values: Sequence[int], bits: int) -> list[int]:
    """One little-endian stream of bits, in signed 32-bit words."""
    number = sum(value << (bits * place) for place, value in enumerate(values))
    count = -(-len(values) * bits // 32)
    return [_signed(number >> (32 * word) & 0xFFFFFFFF) for word in range(count)]


def padded(values: Sequence[int], bits: int) -> list[int]:
    """``32 // bits`` values per word, the highest bits left empty."""
    per_word = 32 // bits
    return [
        _signed(sum(v << (bits * i) for i, v in enumerate(values[start : start + per_word])))
        for start in range(0, len(values), per_word)
    ]


def rows_packed(codes: torch.Tensor, bits: int, pack: Any = stream) -> torch.Tensor:
    """Every row packed: (rows, words) int32."""
    return torch.tensor([pack(row, bits) for row in codes.tolist()], dtype=torch.int32)


def columns_packed(codes: torch.Tensor, bits: int, pack: Any = stream) -> torch.Tensor:
    """Every column packed: (words, columns) int32."""
    return rows_packed(codes.t(), bits, pack).t().contiguous()


def awq_packed(values: torch.Tensor) -> torch.Tensor:
    """Eight columns per word, in the order 0 2 4 6 1 3 5 7: (rows, columns / 8) int32."""
    words = []
    for row in values.tolist():
        eights = [row[start : start + 8] for start in range(0, len(row), 8)]
        words.append([stream([e[i] for i in (0, 2, 4, 6, 1, 3, 5, 7)], 4)[0] for e in eights])
    return torch.tensor(words, dtype=torch.int32)


def state_bytes(values: dict[str, Any]) -> torch.Tensor:
    """The JSON of bitsandbytes as a tensor."""
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


def random_codes(rows: int, columns: int, bits: int, seed: int = 0) -> torch.Tensor:
    """Unsigned codes that use the whole range: (rows, columns) int64."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator)
    codes.view(-1)[:2] = torch.tensor([0, (1 << bits) - 1])
    return codes


def random_scales(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 1) -> torch.Tensor:
    """Positive scales."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) + 0.5).mul(0.01).to(dtype)


def values_of(
    codes: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor, group: int
) -> torch.Tensor:
    """``scale * (code - zero)`` value by value: float32. zero, scale: (rows, groups)."""
    rows, columns = codes.shape
    out = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            at = row % scale.shape[0], column // group % scale.shape[1]
            step = float(codes[row, column]) - float(zero[row % zero.shape[0], at[1]])
            out[row, column] = torch.tensor(float(scale[at])) * torch.tensor(step)
    return out


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def _bytes(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().reshape(-1).view(torch.uint8)
