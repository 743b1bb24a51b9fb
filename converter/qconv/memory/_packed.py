"""Linear layers whose weights stay as they are stored, and are decoded while they are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qconv.errors import BrokenPlugin

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from qconv.checkpoint import DecodedCheckpoint


def packed_linears(
    checkpoint: DecodedCheckpoint, device: torch.device
) -> Callable[[str, torch.Tensor | None], nn.Module | None]:
    """What stands in for linears whose weights a checkpoint holds packed.

    Each takes its parts as stored, on ``device``, and its weight in float32 while it multiplies.
    """

    def substitute(name: str, bias: torch.Tensor | None) -> nn.Module | None:
        if name not in checkpoint.encoded:
            return None
        parts = {part: value.to(device) for part, value in checkpoint.parts(name).items()}
        linear: nn.Module = _packed_linear()(checkpoint, name, parts, bias)
        return linear

    return substitute


def _decoded(
    checkpoint: DecodedCheckpoint, name: str, parts: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """The weight in float32, where its parts are.

    A source that decodes on the CPU only gets copies there: what the device holds is the same.
    """
    try:
        return checkpoint.from_parts(name, parts).dequantize()
    except BrokenPlugin:
        if all(value.device.type == "cpu" for value in parts.values()):
            raise
    device = next(iter(parts.values())).device
    copies = {part: value.cpu() for part, value in parts.items()}
    return checkpoint.from_parts(name, copies).dequantize().to(device)


def _packed_linear() -> Any:  # noqa: ANN401 - torch is imported where it is used
    """The class, made when it is needed: its base is torch's."""
    import torch
    from torch import nn

    class PackedLinear(nn.Module):
        def __init__(
            self,
            checkpoint: DecodedCheckpoint,
            name: str,
            parts: Mapping[str, torch.Tensor],
            bias: torch.Tensor | None,
        ) -> None:
            super().__init__()
            self._checkpoint, self._name, self._parts, self._bias = checkpoint, name, parts, bias

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            weight = _decoded(self._checkpoint, self._name, self._parts).to(states.dtype)
            return torch.nn.functional.linear(states, weight, self._bias)

    return PackedLinear
