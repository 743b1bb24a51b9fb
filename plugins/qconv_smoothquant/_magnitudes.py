"""The largest magnitude of each channel of a fold: in the activations, and in the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qconv.plugin import Fold

#: Channels that are never used are taken for this part of the largest: their scale stays finite.
_FLOOR = 1e-5


def activation_magnitude(fold: Fold) -> torch.Tensor:
    """Largest magnitude of every channel over all tokens of all consumers: (channels,) float32."""
    largest = _zeros(fold)
    for each in fold.consumers:
        if each.statistics is not None:
            largest = largest.maximum(_per_channel(each.statistics.abs_max, fold))
    return _floored(largest)


def weight_magnitude(fold: Fold) -> torch.Tensor:
    """Largest magnitude of every channel's columns in all consumers: (channels,) float32."""
    largest = _zeros(fold)
    for each in fold.consumers:
        largest = largest.maximum(_per_channel(each.weight.abs().amax(0), fold))
    return _floored(largest)


def _zeros(fold: Fold) -> torch.Tensor:
    import torch

    return torch.zeros(fold.channels, device=fold.consumers[0].weight.device)


def _per_channel(columns: torch.Tensor, fold: Fold) -> torch.Tensor:
    """Largest over the columns of every channel: (channels,) float32."""
    zeros = _zeros(fold)
    place = fold.channel_of.to(zeros.device)
    return zeros.scatter_reduce_(0, place, columns.to(zeros), "amax")


def _floored(magnitude: torch.Tensor) -> torch.Tensor:
    largest = float(magnitude.max())
    if not largest:
        return magnitude.new_ones(len(magnitude))
    return (magnitude / largest).clamp(min=_FLOOR)
