"""The default search in plain torch: the CUDA path, and what the compiled loops must agree with."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def quantize(
    grid: str, weight: torch.Tensor, importance: torch.Tensor | None = None
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """As :func:`qconv.kernels.search.quantize`, importance already relative to its largest."""
    raise NotImplementedError(grid)
