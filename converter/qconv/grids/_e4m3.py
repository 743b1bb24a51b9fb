"""FP8 E4M3: a sign, four bits of exponent, three of mantissa, no infinities, 448 the largest.

The "fn" kind of https://arxiv.org/abs/2209.05433, torch's ``float8_e4m3fn``. A code is the bit
pattern of a value; of the 256 patterns two are NaN, and no grid has them as codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: The largest value.
LARGEST = 448.0
#: The highest code: that of ``-LARGEST``. The one above it is NaN.
HIGHEST = 0xFE
#: The code in between that is NaN, too.
NAN = 0x7F


def encode(values: torch.Tensor) -> torch.Tensor:
    """Codes of the nearest values, ties to even, saturating: uint8, shaped like ``values``."""
    import torch

    return values.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).view(torch.uint8)


def decode(codes: torch.Tensor) -> torch.Tensor:
    """What uint8 codes stand for: float32, a new tensor."""
    import torch

    return codes.view(torch.float8_e4m3fn).float()


def codebook(device: torch.device) -> torch.Tensor:
    """The values of codes 0 to ``HIGHEST``: (255,) float32; ``NAN`` repeats the largest.

    Whoever takes the first of equal values, as they must, never takes ``NAN``.
    """
    import torch

    values = decode(torch.arange(HIGHEST + 1, dtype=torch.uint8, device=device))
    values[NAN] = LARGEST
    return values
