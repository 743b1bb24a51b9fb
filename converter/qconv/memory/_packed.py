"""Linear layers whose weights stay as they are stored, and are decoded while they are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
            held = self._checkpoint.from_parts(self._name, self._parts)
            weight = held.dequantize().to(states.dtype)
            del held
            return torch.nn.functional.linear(states, weight, self._bias)

    return PackedLinear
