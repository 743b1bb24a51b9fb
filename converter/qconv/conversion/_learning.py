"""A block as learned rounding sees it: a function of its linear weights, on real inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qconv.model import Hidden, LiveBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningBlock:
    """The :class:`qconv.plugin.Block` of a live block.

    weights: to be rounded, (out, in) float32 by source name
    inputs: hidden states before the block, as the module is to be run on
    targets: hidden states after the block in the float model
    """

    name: str
    weights: Mapping[str, torch.Tensor]
    live: LiveBlock
    inputs: Hidden
    targets: Hidden

    @property
    def windows(self) -> int:
        """How many calibration windows there are."""
        return len(self.inputs)

    def target(self, window: int) -> torch.Tensor:
        """The float model's states after the block: (tokens, hidden) float32."""
        return self.targets[window].float()

    def run(self, window: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The output with ``weights`` in place of the block's own: (tokens, hidden) float32."""
        return self.live.run(self.inputs, window, weights=weights).float()
