"""What only super-block grids do; the rest is in test_blocked."""

from __future__ import annotations

import pytest
import torch

from qconv.errors import UnsupportedGrid
from qconv.grids import SuperBlockGrid


def test_columns_that_do_not_fill_super_blocks_are_refused_with_what_would_suit():
    grid = SuperBlockGrid(type="q4_k")
    with pytest.raises(
        UnsupportedGrid,
        match=r"^tensor 'x': 576 columns .* q4_k's block of 256 \(512 or 768 would be\); "
        "use q8_0 or q5_0, whose blocks are 32$",
    ):
        grid.check_shape((4, 576), "x")
    with pytest.raises(UnsupportedGrid, match=r"block of 256 \(256 would be\); use float16"):
        grid.quantize(torch.zeros(2, 100))


@pytest.mark.parametrize("search", ["default", "ggml"])
@pytest.mark.parametrize("name", ["q2_k", "q4_k", "q5_k"])
def test_super_minimums_beyond_float16_are_refused(name, search):
    weight = torch.ones(2, 512)
    weight[1, 256:] = -1e9
    with pytest.raises(
        UnsupportedGrid,
        match=rf"row 1, columns 256\.\.511: values up to 1e\+09 need a super minimum that {name}",
    ):
        SuperBlockGrid(type=name, search=search).quantize(weight)
