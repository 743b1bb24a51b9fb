"""Adds to a quantized weight how the runtime quantizes its input, static scales included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qconv.errors import Unsupported

if TYPE_CHECKING:
    from qconv.plugin import TensorPlan
    from qconv.statistics import Statistics
    from qconv.tensors import QuantTensor


def with_activation(
    tensor: QuantTensor, plan: TensorPlan, statistics: Mapping[str, Statistics]
) -> QuantTensor:
    """The tensor with the activation that ``plan`` asks for, and none when it asks for none.

    statistics: of inputs, by the source name of the weight

    Raises:
        Unsupported: a static scale is asked for, and no calibration saw the input.
    """
    grid = plan.activation
    if tensor.activation == grid:  # also one with static scales that a source held
        return tensor
    if grid is None or grid.dynamic:
        return tensor.with_activation(grid, {})
    import torch

    seen = [statistics[name] for name in plan.sources if name in statistics]
    if len(seen) != len(plan.sources) or not all(each.tokens for each in seen):
        raise Unsupported(
            f"tensor {plan.name!r}: its format states the scale of its input beforehand, and no "
            "calibration saw that input; give --calibration, e.g. --calibration builtin, or "
            "choose a format with dynamic activations"
        )
    low = torch.stack([each.low for each in seen]).amin(0).to(tensor.device)
    high = torch.stack([each.high for each in seen]).amax(0).to(tensor.device)
    return tensor.with_activation(grid, grid.fit_range(low, high))
