"""How large each channel of a fold is: in the activations, and in the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qconv.plugin import Fold

#: Channels that are never used are taken for this part of the largest: their scale stays finite.
_FLOOR = 1e-5


def activation_magnitude(fold: Fold) -> torch.Tensor:
    """Root mean square of every channel over all tokens of all consumers: (channels,) float32."""
    squares = _zeros(fold)
    tokens = 0
    for each in fold.consumers:
        if each.statistics is not None:
            squares += _per_channel(each.statistics.square_sum, fold)
            tokens += each.statistics.tokens
    return _floored((squares / max(1, tokens)).sqrt())


def weight_magnitude(fold: Fold) -> torch.Tensor:
    """Root mean square of every channel's columns in all consumers: (channels,) float32."""
    squares = _zeros(fold)
    for each in fold.consumers:
        squares += _per_channel(each.weight.square().sum(0), fold)
    return _floored((squares / sum(len(each.weight) for each in fold.consumers)).sqrt())


def _zeros(fold: Fold) -> torch.Tensor:
    import torch

    device = fold.consumers[0].weight.device
    return torch.zeros(fold.channels, dtype=torch.float64, device=device)


def _per_channel(columns: torch.Tensor, fold: Fold) -> torch.Tensor:
    """Mean over the columns of every channel: (channels,) float64."""
    zeros = _zeros(fold)
    place = fold.channel_of.to(zeros.device)
    counts = place.bincount(minlength=fold.channels).clamp(min=1)
    return zeros.index_add_(0, place, columns.to(zeros)) / counts


def _floored(magnitude: torch.Tensor) -> torch.Tensor:
    largest = float(magnitude.max())
    if not largest:
        return magnitude.new_ones(len(magnitude)).float()
    return (magnitude / largest).clamp(min=_FLOOR).float()
