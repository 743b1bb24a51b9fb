"""llama.cpp's own quantizers, byte for byte: what ``search="ggml"`` runs. On the CPU only.

Arithmetic as in https://github.com/ggml-org/llama.cpp, ``ggml/src/ggml-quants.c``, without an
importance matrix and with one, zero importances included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import ggml_block, ggml_superblock

if TYPE_CHECKING:
    from collections.abc import Mapping

# Codes are 0..2 * half - 1 for symmetric types, 0..highest for affine ones.
_HALF = {"q4_0": 8, "q5_0": 16}
_HIGHEST = {"q4_1": 15, "q5_1": 31}
_BITS = {"q2_k": 2, "q4_k": 4, "q5_k": 5}
_SUPER_BLOCK = 256
_BLOCK = 32


def quantize(
    grid: str,
    weight: torch.Tensor,
    importance: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """Codes and parameters whose packed bytes are those of ``ggml_quantize_chunk``.

    grid: a lower-case ggml type name such as ``q4_k``
    weight: (rows, columns) float, any device; columns a multiple of the type's block
    importance: (columns,) float, or None
    """
    device = weight.device
    w = _on_cpu(weight)
    rows, columns = w.shape
    block = _SUPER_BLOCK if grid.endswith("_k") else _BLOCK
    blocks = w.reshape(rows * columns // block, block)
    shared = np.empty((0, block), np.float32)
    if importance is not None:
        shared = _on_cpu(importance).reshape(columns // block, block)
    run = _quantize_super_blocks if block == _SUPER_BLOCK else _quantize_blocks
    found = run(grid, blocks, shared)
    codes = torch.from_numpy(found.pop("codes")).reshape(rows, columns).to(device)
    return codes, {
        name: torch.from_numpy(values).reshape(rows, columns // block, *values.shape[1:]).to(device)
        for name, values in found.items()
    }


def _on_cpu(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    array: np.ndarray[Any, np.dtype[np.float32]]
    array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return array


def _quantize_blocks(
    grid: str,
    blocks: np.ndarray[Any, Any],
    importance: np.ndarray[Any, Any],
) -> dict[str, np.ndarray[Any, Any]]:
    n = len(blocks)
    scale = np.empty(n, np.float16)
    if grid == "q8_0":  # llama.cpp ignores importance here
        codes = np.empty(blocks.shape, np.int8)
        ggml_block.q8_0(blocks, scale.view(np.uint16), codes)
        return {"codes": codes, "scale": scale}
    codes = np.empty(blocks.shape, np.uint8)
    weighted = len(importance) > 0 and n > 0
    if grid in _HALF:
        out: tuple[Any, ...] = (_HALF[grid], scale.view(np.uint16), codes)
        if weighted:
            ggml_block.symmetric_weighted(blocks, importance, *out)
        else:
            ggml_block.symmetric(blocks, *out)
        return {"codes": codes, "scale": scale}
    minimum = np.empty(n, np.float16)
    out = (_HIGHEST[grid], scale.view(np.uint16), minimum.view(np.uint16), codes)
    if weighted:
        ggml_block.affine_weighted(blocks, importance, *out)
    else:
        ggml_block.affine(blocks, *out)
    return {"codes": codes, "scale": scale, "minimum": minimum}


def _quantize_super_blocks(
    grid: str,
    blocks: np.ndarray[Any, Any],
    importance: np.ndarray[Any, Any],
) -> dict[str, np.ndarray[Any, Any]]:
    n = len(blocks)
    codes = np.empty(blocks.shape, np.uint8)
    super_scale = np.empty(n, np.float16)
    if grid in _BITS:
        subs = 16 if grid == "q2_k" else 8
        super_minimum = np.empty(n, np.float16)
        sub_scales = np.empty((n, subs), np.uint8)
        sub_minimums = np.empty((n, subs), np.uint8)
        ggml_superblock.affine(
            blocks,
            importance,
            _BITS[grid],
            super_scale.view(np.uint16),
            super_minimum.view(np.uint16),
            sub_scales,
            sub_minimums,
            codes,
        )
        return {
            "codes": codes,
            "super_scale": super_scale,
            "super_minimum": super_minimum,
            "sub_scales": sub_scales,
            "sub_minimums": sub_minimums,
        }
    signed = np.empty((n, 16), np.int8)
    kernel = ggml_superblock.q3_k if grid == "q3_k" else ggml_superblock.q6_k
    kernel(blocks, importance, super_scale.view(np.uint16), signed, codes)
    return {"codes": codes, "super_scale": super_scale, "sub_scales": signed}
