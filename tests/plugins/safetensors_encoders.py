"""Quantized checkpoints written value by value, as their formats say: slow, plain, independent."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qconv.plugin import EncodedTensor, ModelInfo, Source, TensorInfo

if TYPE_CHECKING:
    from qconv.tensors import QuantTensor

ROWS, COLUMNS, GROUP = 32, 64, 32
X = "model.layers.0.mlp.up_proj"

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
    numbers, zeros = codes.tolist(), zero.tolist()
    scales = [[np.float32(value) for value in row] for row in scale.tolist()]
    out = np.empty(codes.shape, np.float32)
    for row, column in np.ndindex(*codes.shape):
        own = scales[row % len(scales)]
        at = column // group % len(own)
        out[row, column] = own[at] * np.float32(numbers[row][column] - zeros[row % len(zeros)][at])
    return torch.from_numpy(out)


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


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def _bytes(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().reshape(-1).view(torch.uint8)
