"""What only block grids do; the rest is in test_blocked."""

from __future__ import annotations

import pytest
import torch

from qconv.errors import UnsupportedGrid
from qconv.grids import BlockGrid

either_search = pytest.mark.parametrize("search", ["default", "ggml"])


def test_columns_that_do_not_fill_blocks_are_refused_with_sizes_that_do():
    grid = BlockGrid(type="q8_0")
    with pytest.raises(
        UnsupportedGrid,
        match=r"^tensor 'x': 100 columns .* q8_0's block of 32 \(96 or 128 would .* use float16$",
    ):
        grid.check_shape((4, 100), "x")
    with pytest.raises(UnsupportedGrid, match=r"block of 32 \(32 would be\); use float16"):
        grid.quantize(torch.zeros(2, 8))


@either_search
@pytest.mark.parametrize("name", ["q4_1", "q5_1"])
def test_minimums_beyond_float16_are_refused(name, search):
    weight = torch.full((2, 64), -1.0)
    weight[1, 32:] = -70000.0
    with pytest.raises(
        UnsupportedGrid,
        match=rf"row 1, columns 32\.\.63: values up to 7e\+04 need a minimum that {name} cannot",
    ):
        BlockGrid(type=name, search=search).quantize(weight)


def test_llama_cpps_q8_0_does_not_look_at_importance():
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    grid = BlockGrid(type="q8_0", search="ggml")
    codes, parameters = grid.quantize(weight)
    steered, found = grid.quantize(weight, torch.arange(64.0))
    assert torch.equal(codes, steered)
    assert torch.equal(parameters["scale"], found["scale"])
