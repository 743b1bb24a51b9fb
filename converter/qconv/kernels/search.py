"""The default search for GGUF grids: codes and parameters that lose least squared error.

Minimises ``sum(importance * (decoded - weight)^2)`` with everything that the format rounds rounded.
Without importance all weights count alike, but in Q3_K the larger ones more.
CPU tensors go through compiled loops on numpy views of them; others through the torch reference,
which does the same arithmetic in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from . import reference, search_block, search_superblock
from .search_effort import (
    affine_effort,
    affine_super_effort,
    byte_tries,
    scaled_effort,
    scaled_super_effort,
)
from .search_lanes import LANES, TILE

Array = np.ndarray[Any, Any]

#: Values searched at a time where torch does it, which makes several tensors of their size: 64 MiB
#: of float32 each.
_SLAB = 1 << 24

#: Importance below this share of the largest counts as this share: an input that calibration never
#: saw must still come out near its weight, and it costs nothing elsewhere.
LEAST_IMPORTANCE = 1e-6


def quantize(
    grid: str, weight: torch.Tensor, importance: torch.Tensor | None = None
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """Codes and parameters of a whole weight, in one pass over it.

    grid: a lower-case ggml type name such as ``q4_k``
    weight: (rows, columns) float32, columns a multiple of the type's block
    importance: (columns,) float32, not negative; None or all zeros for equal importance

    A scale that float16 cannot hold comes out infinite; the grid refuses it.
    """
    importance = _normal(importance, weight)
    if weight.device.type != "cpu":
        return _by_slabs(grid, weight, importance)
    weight = weight.detach().to(torch.float32).contiguous()
    if grid in ("q2_k", "q4_k", "q5_k"):
        return _affine_super(grid, weight, importance)
    if grid in ("q3_k", "q6_k"):
        return _scaled_super(grid, weight, importance)
    return _block(grid, weight, importance)


def _by_slabs(
    grid: str, weight: torch.Tensor, importance: torch.Tensor | None
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """The reference on rows in turn, each on its own; beside the result it takes some slabs."""
    import torch

    step = max(1, _SLAB // max(1, weight.shape[1]))
    parts = [
        reference.quantize(grid, weight[start : start + step], importance)
        for start in range(0, max(1, len(weight)), step)
    ]
    if len(parts) == 1:
        return parts[0]
    names = parts[0][1]
    return (
        torch.cat([codes for codes, _ in parts]),
        {name: torch.cat([found[name] for _, found in parts]) for name in names},
    )


def _normal(importance: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor | None:
    """Relative to the largest and bounded below, on the weight's device; None if all are zero."""
    if importance is None or not importance.numel():
        return None
    # Moved first: on CUDA, torch multiplies with the inverse of a divisor that is on the CPU.
    importance = importance.detach().to(weight.device, torch.float32)
    largest = importance.max()
    if not largest > 0:
        return None
    return (importance / largest).clamp_min(LEAST_IMPORTANCE)


def _tiles(importance: torch.Tensor | None, length: int, owners: int, block: int) -> Array | None:
    """Importance as tiles of the kernels see it: (tiles that differ, 2048) float32.

    Tiles run over the flat weight, so they start at ever other columns until they repeat.
    """
    if importance is None:
        return None
    blocks = len(importance) // block
    kinds = blocks // math.gcd(owners, blocks)
    starts = np.arange(kinds)[:, None] * owners + np.arange(owners)
    sub = block // length
    shape = (blocks, max(1, sub // 8), min(8, sub), length)
    tiles = importance.numpy().reshape(shape)[starts % blocks]  # (kinds, owners, groups, 8, length)
    return np.ascontiguousarray(tiles.transpose(0, 2, 4, 3, 1)).reshape(kinds, -1)


def _super_tiles(
    importance: torch.Tensor | None, length: int, *, by_magnitude: bool
) -> Array | None:
    if by_magnitude:
        return np.empty((0, TILE), np.float32)
    return _tiles(importance, length, search_superblock.OWNERS, 256)


def _affine_super(
    grid: str, weight: torch.Tensor, importance: torch.Tensor | None
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    effort = affine_super_effort(grid, weighted=importance is not None)
    rows, columns = weight.shape
    blocks = (rows, columns // 256)
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    parameters = {
        "super_scale": torch.empty(blocks, dtype=torch.float16),
        "super_minimum": torch.empty(blocks, dtype=torch.float16),
        "sub_scales": torch.empty(*blocks, 256 // effort.length, dtype=torch.uint8),
        "sub_minimums": torch.empty(*blocks, 256 // effort.length, dtype=torch.uint8),
    }
    search_superblock.affine_superblocks(
        _flat(weight),
        _super_tiles(importance, effort.length, by_magnitude=effort.by_magnitude),
        effort.length,
        np.float32(effort.sub.highest),
        np.float32(effort.most),
        np.array(effort.sub.starts, np.float32),
        effort.sub.rounds,
        np.array(effort.minimum_tries, np.float32),
        np.array(effort.scale_tries, np.float32),
        effort.refits,
        _flat(codes),
        *map(_flat, parameters.values()),
    )
    return codes, parameters


def _scaled_super(
    grid: str, weight: torch.Tensor, importance: torch.Tensor | None
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    effort = scaled_super_effort(grid, weighted=importance is not None)
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    parameters = {
        "super_scale": torch.empty(rows, columns // 256, dtype=torch.float16),
        "sub_scales": torch.empty(rows, columns // 256, 16, dtype=torch.int8),
    }
    search_superblock.scaled_superblocks(
        _flat(weight),
        _super_tiles(importance, 16, by_magnitude=effort.by_magnitude),
        16,
        np.float32(effort.sub.lowest),
        np.float32(effort.sub.highest),
        np.float32(effort.least),
        np.float32(effort.most),
        np.array(effort.sub.starts, np.float32),
        effort.sub.rounds,
        np.array(effort.tries, np.float32),
        effort.refits,
        _flat(codes),
        *map(_flat, parameters.values()),
    )
    return codes, parameters


def _block(
    grid: str, weight: torch.Tensor, importance: torch.Tensor | None
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    rows, columns = weight.shape
    weighted = importance is not None
    tiles = _tiles(importance, search_block.BLOCK, LANES, search_block.BLOCK)
    codes = torch.empty(rows, columns, dtype=torch.int8 if grid == "q8_0" else torch.uint8)
    scale = torch.empty(rows, columns // search_block.BLOCK, dtype=torch.float16)
    out = _flat(codes), _flat(scale)
    if grid == "q8_0":
        search_block.byte_blocks(_flat(weight), tiles, np.array(byte_tries(), np.float32), *out)
        return codes, {"scale": scale}
    if grid in ("q4_0", "q5_0"):
        scaled = scaled_effort(grid, weighted=weighted)
        starts = np.array(scaled.starts, np.float32)
        ends = np.float32(scaled.lowest), np.float32(scaled.highest)
        search_block.scaled_blocks(_flat(weight), tiles, *ends, starts, scaled.rounds, *out)
        return codes, {"scale": scale}
    affine = affine_effort(grid, weighted=weighted)
    starts = np.array(affine.starts, np.float32)
    highest = np.float32(affine.highest)
    minimum = torch.empty_like(scale)
    affine_out = (*out, _flat(minimum))
    if not affine.starts:
        search_block.range_blocks(_flat(weight), highest, *affine_out)
        return codes, {"scale": scale, "minimum": minimum}
    search_block.affine_blocks(_flat(weight), tiles, highest, starts, affine.rounds, *affine_out)
    return codes, {"scale": scale, "minimum": minimum}


def _flat(tensor: torch.Tensor) -> Array:
    """A flat view of the tensor's memory; float16 as its bits."""
    array: Array = tensor.reshape(-1).numpy()
    return array.view(np.uint16) if array.dtype == np.float16 else array
