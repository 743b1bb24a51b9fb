"""FP8 (E4M3, without infinities) as stored: one byte per value, a scale beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.errors import UnreadableInput

from ._stored import finite

if TYPE_CHECKING:
    import torch

    from qconv.plugin import EncodedTensor

#: Rows or columns of one scale: no grid takes more, and no model has any use for them.
LARGEST_BLOCK = 1 << 16
#: All bits but the sign: the only patterns that are not a number.
_NAN = 0x7F


def float8_codes(name: str, weight: torch.Tensor) -> torch.Tensor:
    """The bit patterns: (rows, columns) uint8.

    weight: (rows, columns) float8_e4m3fn

    Raises:
        UnreadableInput: a value is not a number.
    """
    import torch

    codes = weight.contiguous().view(torch.uint8)
    bad = int(torch.count_nonzero((codes & _NAN) == _NAN))  # a sum would copy it to int64
    if bad:
        raise UnreadableInput(
            f"tensor {name!r}: {bad} of its values are not numbers (NaN); "
            "the checkpoint is damaged, get it anew from its publisher"
        )
    return codes


def float8_parameters(tensor: EncodedTensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """The scale in the shape that the grid lays out."""
    shape = tensor.grid.layout(tensor.shape)["scale"][0]
    return {"scale": finite(tensor.name, scale).reshape(shape).contiguous()}
