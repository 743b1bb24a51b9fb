"""A tiny decoder block for tests of learned rounding: attention, gated MLP, norms, residuals."""

from __future__ import annotations

import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from qconv.statistics import Statistics, StatisticsSum

HIDDEN, INNER, TOKENS, HEADS = 256, 256, 24, 4
SHAPES = {
    "q": (HIDDEN, HIDDEN),
    "k": (HIDDEN, HIDDEN),
    "v": (HIDDEN, HIDDEN),
    "o": (HIDDEN, HIDDEN),
    "gate": (INNER, HIDDEN),
    "up": (INNER, HIDDEN),
    "down": (HIDDEN, INNER),
}


class TinyBlock:
    """What the host hands to block rounders, over random weights and correlated random inputs."""

    def __init__(self, name: str = "layers.0", windows: int = 6) -> None:
        generator = torch.Generator().manual_seed(5)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        self.name = name
        self.weights = {f"{n}.weight": normal(*s) * s[1] ** -0.5 for n, s in SHAPES.items()}
        mix = normal(16, HIDDEN) * (0.2 + torch.rand(HIDDEN, generator=generator) ** 4 * 4)
        self.inputs = [
            normal(TOKENS, 16) @ mix + 0.1 * normal(TOKENS, HIDDEN) for _ in range(windows)
        ]
        self.runs = 0

    @property
    def windows(self) -> int:
        return len(self.inputs)

    def target(self, window: int) -> torch.Tensor:
        with torch.no_grad():
            return self._output(window, self.weights)

    def run(self, window: int, weights) -> torch.Tensor:
        self.runs += 1
        return self._output(window, {**self.weights, **weights})

    def loss(self, tensors) -> float:
        """Mean squared error over all windows, in float64."""
        values = {name: tensor.dequantize() for name, tensor in tensors.items()}
        errors = [
            (self.run(window, values) - self.target(window)).double().square().mean()
            for window in range(self.windows)
        ]
        return float(sum(errors)) / len(errors)

    def statistics(self) -> dict[str, Statistics]:
        """Of every weight's input."""
        sums: dict[str, StatisticsSum] = {}
        for window in range(self.windows):
            seen: dict[str, torch.Tensor] = {}
            self._output(window, self.weights, seen)
            for name, rows in seen.items():
                sums.setdefault(name, StatisticsSum(rows.shape[1])).add(rows)
        return {name: each.total() for name, each in sums.items()}

    def _output(self, window: int, weights, seen=None) -> torch.Tensor:
        def linear(name: str, rows: torch.Tensor) -> torch.Tensor:
            if seen is not None:
                seen[f"{name}.weight"] = rows
            return rows @ weights[f"{name}.weight"].t()

        x = self.inputs[window]
        normed = rms_norm(x, (HIDDEN,))
        q, k, v = (
            linear(name, normed).view(TOKENS, HEADS, -1).transpose(0, 1) for name in ("q", "k", "v")
        )
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear("o", mixed.transpose(0, 1).reshape(TOKENS, HIDDEN))
        normed = rms_norm(x, (HIDDEN,))
        return x + linear("down", silu(linear("gate", normed)) * linear("up", normed))
