"""On a real model's weights, grids lose no more than llama.cpp's own quantizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from llama_oracle import TYPES, ggml_quantize
from qconv.checkpoint import open_checkpoint
from qconv.grids import BlockGrid, SuperBlockGrid
from qconv_gguf._packing import pack

pytestmark = pytest.mark.slow

NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{part}.weight"
        for layer in (0, 14, 29)
        for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
    ),
]


@pytest.fixture(scope="module")
def weights(smollm2_wide) -> list[torch.Tensor]:
    """Rows of tensors of every kind, from the first, middle and last block."""
    with open_checkpoint(smollm2_wide) as checkpoint:
        return [checkpoint.read_rows(name, 0, 160).float() for name in NAMES]


def importance_of(weight: torch.Tensor) -> torch.Tensor:
    """Heavy-tailed and seeded, as the mean squares of real inputs are."""
    generator = torch.Generator().manual_seed(weight.shape[1])
    return torch.randn(weight.shape[1], generator=generator).mul(1.5).exp()


def make_grid(name: str, search: str):
    family = SuperBlockGrid if name.endswith("_k") else BlockGrid
    return family(type=name, search=search)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", TYPES)
def test_the_error_is_at_most_llama_cpps(weights, name, weighted):
    ratios = []
    for weight in weights:
        importance = importance_of(weight) if weighted else None
        scale = torch.ones(weight.shape[1]) if importance is None else importance
        grid = make_grid(name, "default")
        ours = grid.decode(*grid.quantize(weight, importance))
        theirs = ggml_quantize(
            name, weight.numpy(), None if importance is None else importance.numpy()
        )
        values = torch.from_numpy(dequantize(theirs, GGMLQuantizationType[name.upper()]))
        error, peer = (
            float((scale * (found - weight).double().square()).sum()) for found in (ours, values)
        )
        ratios.append(error / peer)
    assert max(ratios) <= 1.02
    assert np.mean(ratios) <= 1.0


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", TYPES)
def test_llama_cpps_search_gives_llama_cpps_bytes(weights, name, weighted):
    for weight in weights:
        importance = importance_of(weight) if weighted else None
        codes, parameters = make_grid(name, "ggml").quantize(weight, importance)
        theirs = ggml_quantize(
            name, weight.numpy(), None if importance is None else importance.numpy()
        )
        assert np.array_equal(pack(name, codes, parameters).numpy(), theirs)
