"""Checks and conversions that checkpoints of integers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.errors import UnreadableInput

from ._bits import unsigned

if TYPE_CHECKING:
    import torch

    from qconv.plugin import EncodedTensor


def check_range(name: str, codes: torch.Tensor, bits: int) -> None:
    """Raise UnreadableInput unless signed codes fit ``bits`` bits. codes: int8."""
    half = 1 << (bits - 1)
    low, high = int(codes.min()), int(codes.max())
    if low < -half or high >= half:
        raise UnreadableInput(
            f"tensor {name!r}: codes from {low} to {high}, but {bits} bits hold {-half} to "
            f"{half - 1}; config.json and weights do not belong together, get all files anew"
        )


def static_input(
    tensor: EncodedTensor, scale: torch.Tensor | None, zero: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """The static parameters of the input, as ``tensor.activation`` lays them out.

    scale: one value; None when the runtime finds it as it goes
    zero: one int8 value, of signed codes

    Raises:
        UnreadableInput: the scale is not positive and finite, or the zero-point is not 0 in a
            symmetric grid.
    """
    activation = tensor.activation
    if activation is None or activation.dynamic or scale is None:
        return {}
    scale = scale.reshape(1).float()
    value = float(scale)
    if not 0.0 < value < float("inf"):
        raise UnreadableInput(
            f"tensor {tensor.name!r}: its input_scale is {value}, but must be positive and "
            "finite; the checkpoint is damaged, get it anew from its publisher"
        )
    if not activation.symmetric:
        if zero is None:
            raise ValueError("plugin author: an asymmetric input was planned without a zero-point")
        return {"scale": scale, "zero_point": unsigned(zero.reshape(1), activation.bits)}
    if zero is not None and int(zero.reshape(1)) != 0:
        raise UnreadableInput(
            f"tensor {tensor.name!r}: its input_zero_point is {int(zero.reshape(1))}, but "
            "config.json says symmetric; they do not belong together, get all files anew"
        )
    return {"scale": scale}
