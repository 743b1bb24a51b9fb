"""Facts about what a rounder is given of a slab."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qconv.conversion._rounding import ByRounder
from qconv.grids import UniformGrid
from qconv_rtn._rtn import Rtn

GRID = UniformGrid(bits=4, symmetric=False, group_size=32, search="absmax")


class Seeing:
    """A rounder that notes the dtype it is given."""

    def __init__(self) -> None:
        self.seen: list[torch.dtype] = []

    def quantize(self, weight, grid, statistics=None):
        self.seen.append(weight.dtype)
        return Rtn().quantize(weight, grid, statistics)


class SeeingStored(Seeing):
    takes_stored = True


def bfloat16_rows() -> SimpleNamespace:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    return SimpleNamespace(stored=lambda plan: weight)


PLAN = SimpleNamespace(sources=("w",))


@pytest.mark.parametrize(
    ("rounder", "dtype"), [(Seeing(), torch.float32), (SeeingStored(), torch.bfloat16)]
)
def test_a_rounder_gets_float32_unless_it_takes_weights_as_stored(rounder, dtype):
    ByRounder(rounder=rounder).quantize(bfloat16_rows(), PLAN, GRID)
    assert rounder.seen == [dtype]


def test_weights_as_stored_are_rounded_as_in_float32():
    stored = ByRounder(rounder=Rtn()).quantize(bfloat16_rows(), PLAN, GRID)
    wide = ByRounder(rounder=Seeing()).quantize(bfloat16_rows(), PLAN, GRID)
    assert torch.equal(stored.codes, wide.codes)
    assert all(torch.equal(stored.parameters[n], wide.parameters[n]) for n in wide.parameters)
