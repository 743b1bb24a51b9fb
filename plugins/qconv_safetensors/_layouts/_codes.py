"""Codes as layouts store them: unsigned, whatever the grid's sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qconv.grids import UniformGrid
    from qconv.tensors import QuantTensor


def unsigned_codes(value: QuantTensor, grid: UniformGrid) -> torch.Tensor:
    """Codes from 0 to 2**bits - 1: (rows, columns) uint8; the middle stands for zero."""
    import torch

    codes = value.codes.cpu().contiguous()
    if not grid.symmetric:
        return codes
    return codes.view(torch.uint8) + (1 << (grid.bits - 1))  # wraps: -8 is 248, and 256 is 0


def zero_points(value: QuantTensor, grid: UniformGrid) -> torch.Tensor:
    """The code that stands for zero: (rows, groups) uint8."""
    import torch

    if grid.symmetric:
        scale = value.parameters["scale"]
        return torch.full(tuple(scale.shape), 1 << (grid.bits - 1), dtype=torch.uint8)
    return value.parameters["zero_point"].cpu()
