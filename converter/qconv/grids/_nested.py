"""Double quantization: scales stored in bitsandbytes' dynamic 8-bit type, less their mean.

Codes are those of the nearest values, as bitsandbytes' CUDA kernel has them. (Its CPU library looks
values up in a table of 65536 places, which is now and then one code off.) The mean is correctly
rounded, so that it is the same on any device; bitsandbytes', whose sums have torch's order, may
differ from it in the last bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from qconv.grids import _bitsandbytes as tables

if TYPE_CHECKING:
    import torch

    from qconv.grids._grid import Parameters

#: Scales that share a scale of their own (``blocksize=256`` of bitsandbytes' nested state).
NESTED = 256

#: bitsandbytes' own floor: the inverse of a largest magnitude stays finite.
_FLOOR = 1e-38


def quantized(absmax: torch.Tensor) -> Parameters:
    """Codes of scales, their own scales, and their mean.

    absmax: (rows, blocks) float32, not negative
    """
    return with_offset(absmax, _mean(absmax))


def with_offset(absmax: torch.Tensor, offset: torch.Tensor) -> Parameters:
    """The same for a given mean: (1,) float32."""
    import torch

    rest = (absmax - offset).flatten()
    padded = torch.nn.functional.pad(rest, (0, -len(rest) % NESTED)).view(-1, NESTED)
    largest = padded.abs().amax(1)
    table = _table(absmax)
    bounds = (table[:-1] + table[1:]) / 2
    scaled = padded * (1.0 / largest.clamp(min=_FLOOR))[:, None]
    codes = torch.bucketize(scaled.clamp(-1.0, 1.0), bounds).flatten()[: len(rest)]
    return {
        "absmax": codes.to(torch.uint8).view(absmax.shape),
        "nested_absmax": largest,
        "nested_offset": offset,
    }


def decoded(parameters: Parameters) -> torch.Tensor:
    """The scales that a runtime computes: (rows, blocks) float32."""
    import torch

    codes = parameters["absmax"]
    which = torch.arange(codes.numel(), device=codes.device) // NESTED
    nested = parameters["nested_absmax"][which].view(codes.shape)
    return _table(codes)[codes.int()] * nested + parameters["nested_offset"]


def _mean(absmax: torch.Tensor) -> torch.Tensor:
    total = math.fsum(absmax.flatten().tolist())
    return absmax.new_tensor([total / absmax.numel()])


def _table(like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.tensor(tables.dynamic_values(), device=like.device)
