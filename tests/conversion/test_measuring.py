"""What rounding an input costs is told by all tokens, not by the loudest."""

from __future__ import annotations

import math

import pytest
import torch

from qconv.conversion._measuring import _error
from qconv.grids import ActivationGrid
from qconv.statistics import StatisticsSum

STATIC = ActivationGrid(symmetric=False, scope="tensor", dynamic=False)


def _seen(x: torch.Tensor):
    total = StatisticsSum(x.shape[1], gram=False)
    total.add(x, 0)
    return total.total()


def _input(loud: float) -> torch.Tensor:
    """64 tokens, of which one has one value that is far larger than all others."""
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    x[7, 3] = loud
    return x


WEIGHT = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("grid", "least"), [(STATIC, 0.9), (ActivationGrid(), 0.0)])
def test_one_loud_token_does_not_hide_what_becomes_of_the_others(grid, least):
    known = _seen(_input(10_000.0))
    found = _error([WEIGHT], grid, known)
    x = known.sample
    static = None if grid.dynamic else grid.fit_range(known.low, known.high)
    change = (grid.fake_quantize(x, static) - x) @ WEIGHT.T
    by_token = change.norm(dim=1) / (x @ WEIGHT.T).norm(dim=1)
    assert found == pytest.approx(float(by_token.square().mean().sqrt()), rel=1e-4)
    assert least < found < 1.5 * least + 0.02
    all_together = float(change.norm() / (x @ WEIGHT.T).norm())
    assert all_together < 0.02


def test_slabs_of_rows_add_up_and_silent_tokens_do_not_count():
    x = _input(1.0)
    x[11] = 0
    known = _seen(x)
    whole = _error([WEIGHT], STATIC, known)
    assert _error(WEIGHT.split(7), STATIC, known) == pytest.approx(whole, rel=1e-6)
    assert 0 < whole < 0.1
    assert _error([torch.zeros_like(WEIGHT)], STATIC, known) == 0
    assert _error([], STATIC, known) == 0


def test_what_is_no_number_is_no_small_error():
    weight = WEIGHT.clone()
    weight[0, 0] = torch.nan
    assert math.isnan(_error([weight], STATIC, _seen(_input(1.0))))
