"""The hot loops of the codebook grids: the choice of codes, and the sums that the search needs.

A codebook is sorted here: ``levels``, 16 values in ascending order, and ``bounds``, the 15 values
between them. A value takes the level above a bound when it is greater than it.

:func:`codes` is compiled, with a torch reference beside it that also runs on CUDA; the sums are the
torch reference of :mod:`.codebook_search`. Both do the same float32 operations in the same order,
sums in runs of :data:`uniform.RUN` columns. No fastmath.
"""

from __future__ import annotations

import numpy as np
import torch

from .jit import inlined, kernel
from .uniform import arrays, sum_runs

__all__ = ["codes", "codes_reference", "dots", "errors", "level"]


@inlined
def level(value, levels, bounds):
    """The level of a value, or whatever else ``levels`` has of each: 15 selections.

    levels: tuple of 16; bounds: tuple of 15 float32
    """
    q = levels[0]
    q = levels[1] if value > bounds[0] else q
    q = levels[2] if value > bounds[1] else q
    q = levels[3] if value > bounds[2] else q
    q = levels[4] if value > bounds[3] else q
    q = levels[5] if value > bounds[4] else q
    q = levels[6] if value > bounds[5] else q
    q = levels[7] if value > bounds[6] else q
    q = levels[8] if value > bounds[7] else q
    q = levels[9] if value > bounds[8] else q
    q = levels[10] if value > bounds[9] else q
    q = levels[11] if value > bounds[10] else q
    q = levels[12] if value > bounds[11] else q
    q = levels[13] if value > bounds[12] else q
    q = levels[14] if value > bounds[13] else q
    return levels[15] if value > bounds[14] else q


@kernel
def _codes(weight, inverse, bounds, order, codes):
    rows, columns = weight.shape
    groups = inverse.shape[1]
    size = columns // groups
    for row in range(rows):
        for group in range(groups):
            inv = inverse[row, group]
            x = weight[row, group * size : (group + 1) * size]
            out = codes[row, group * size : (group + 1) * size]
            for i in range(size):
                out[i] = level(x[i] * inv, order, bounds)


def codes(
    weight: torch.Tensor, inverse: torch.Tensor, bounds: torch.Tensor, order: torch.Tensor
) -> torch.Tensor:
    """The code of the nearest level of every weight: (rows, in) uint8.

    weight: (rows, in) float32, contiguous
    inverse: (rows, blocks) float32, 1 / scale, contiguous
    bounds: (15,) float32, ascending
    order: (16,) uint8, the code of every level
    """
    if weight.device.type != "cpu":
        return codes_reference(weight, inverse, bounds, order)
    out = torch.empty(weight.shape, dtype=torch.uint8)
    own = tuple(np.int32(code) for code in order.tolist())
    ends = tuple(np.float32(bound) for bound in bounds.tolist())
    _codes(*arrays(weight, inverse), ends, own, *arrays(out))
    return out


def codes_reference(
    weight: torch.Tensor, inverse: torch.Tensor, bounds: torch.Tensor, order: torch.Tensor
) -> torch.Tensor:
    """What :func:`codes` computes, in torch, on any device."""
    x = weight.view(inverse.shape[0], inverse.shape[1], -1)  # (rows, blocks, size)
    return order[torch.bucketize(x * inverse[..., None], bounds)].view(weight.shape)


def dots(
    weight: torch.Tensor,
    importance: torch.Tensor,
    inverse: torch.Tensor,
    levels: torch.Tensor,
    bounds: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per block, ``sum h x q`` and ``sum h q^2``: their quotient is the least-squares scale.

    weight: (in, rows) float32, contiguous
    importance: (in,) float32
    inverse: (blocks, rows) float32, 1 / scale
    levels: (16,) float32 and bounds: (15,) float32, both ascending
    returns: two of (blocks, rows) float32
    """
    x = weight.view(inverse.shape[0], -1, inverse.shape[1])  # (blocks, size, rows)
    h = importance.view(inverse.shape[0], -1, 1)
    q = levels[torch.bucketize(x * inverse[:, None], bounds)]
    hq = h * q
    return sum_runs(hq * x), sum_runs(hq * q)


def errors(
    weight: torch.Tensor,
    importance: torch.Tensor,
    scale: torch.Tensor,
    inverse: torch.Tensor,
    levels: torch.Tensor,
    bounds: torch.Tensor,
) -> torch.Tensor:
    """Per block, ``sum h (x - scale q)^2``: (blocks, rows) float32, arguments as in dots."""
    x = weight.view(inverse.shape[0], -1, inverse.shape[1])  # (blocks, size, rows)
    h = importance.view(inverse.shape[0], -1, 1)
    q = levels[torch.bucketize(x * inverse[:, None], bounds)]
    e = x - scale[:, None] * q
    return sum_runs((h * e) * e)
