"""The compiled loops of GPTQ do what their torch reference does, on every kind of grid."""

from __future__ import annotations

import pytest
import torch

from qconv.grids import BlockGrid, ColumnGrid, SuperBlockGrid, UniformGrid
from qconv_gptq import _rounding
from qconv_gptq._rounding import round_columns
from qconv_gptq._steps import Steps, steps_of

GRIDS = [
    UniformGrid(bits=4, symmetric=True, group_size=64),
    UniformGrid(bits=5, symmetric=False, group_size=64),
    UniformGrid(bits=8, symmetric=True, group_size="tensor"),
    BlockGrid(type="q4_1"),
    SuperBlockGrid(type="q4_k"),
    SuperBlockGrid(type="q6_k"),
]


class Codebook:
    """A grid of 16 uneven values per row, as NF4 is; only what rounding asks for."""

    book = torch.tensor([-1, -0.7, -0.5, -0.4, -0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.6,
                         0.7, 1.0])  # fmt: skip

    def column_run(self, columns: int) -> int:
        return columns

    def layout(self, shape):
        return {"codes": (shape, "uint8")}

    def column(self, parameters, index: int) -> ColumnGrid:
        scale = parameters["scale"][:, 0]
        offset = torch.zeros_like(scale)
        return ColumnGrid(scale=scale, offset=offset, lowest=0, highest=15, codebook=self.book)


def problem(rows: int, columns: int):
    generator = torch.Generator().manual_seed(columns)
    w = torch.randn(rows, columns, generator=generator)
    upper = torch.randn(columns, columns, generator=generator) * 0.05
    upper = upper.triu(1) + torch.eye(columns)
    place = torch.randperm(columns, generator=generator)
    return w, place, upper, torch.rand(columns, generator=generator)


def both(steps: Steps, w, place, upper, d, monkeypatch):
    target = w.t()[place].contiguous()
    compiled = round_columns(target, steps, place, upper, d)
    monkeypatch.setattr(_rounding, "_round_batch", _rounding.round_batch_reference)
    return compiled, round_columns(target, steps, place, upper, d)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_the_kernel_is_the_reference(grid, monkeypatch):
    columns = max(64, grid.columns(96))
    w, place, upper, d = problem(70, columns)
    steps = steps_of(grid, grid.fit(w), (70, columns))
    compiled, reference = both(steps, w, place, upper, d, monkeypatch)
    assert torch.equal(compiled.codes, reference.codes)
    assert torch.equal(compiled.loss, reference.loss)


def test_the_kernel_for_codebooks_is_the_reference(monkeypatch):
    w, place, upper, d = problem(70, 96)
    grid = Codebook()
    steps = steps_of(grid, {"scale": w.abs().amax(dim=1, keepdim=True)}, (70, 96))
    compiled, reference = both(steps, w, place, upper, d, monkeypatch)
    assert torch.equal(compiled.codes, reference.codes)
    assert torch.equal(compiled.loss, reference.loss)


def test_without_feedback_it_is_the_nearest_code():
    grid = UniformGrid(bits=4, symmetric=False, group_size=64)
    w, place, _, d = problem(9, 64)
    parameters = grid.fit(w)
    steps = steps_of(grid, parameters, (9, 64))
    rounded = round_columns(w.t()[place].contiguous(), steps, place, torch.eye(64), d)
    codes = rounded.codes[place.argsort()].t()
    error = (grid.decode(codes.contiguous(), parameters) - w).square()
    nearest = (grid.decode(grid.round(w, parameters), parameters) - w).square()
    assert torch.allclose(error, nearest)
    assert torch.allclose(rounded.loss, (nearest[:, place] * d).sum(dim=1), rtol=1e-4)


def test_a_scale_of_zero_stays_zero():
    grid = SuperBlockGrid(type="q4_k")
    w = torch.zeros(3, 256)
    steps = steps_of(grid, grid.fit(w), (3, 256))
    rounded = round_columns(w.t().contiguous(), steps, torch.arange(256), torch.eye(256), w[0] + 1)
    assert bool((rounded.loss == 0).all())


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_columns_of_a_run_share_their_values(grid):
    columns = max(64, grid.columns(64))
    w = problem(5, columns)[0]
    parameters, run = grid.fit(w), grid.column_run(columns)
    assert grid.columns(columns) % run == 0
    for first in range(0, columns, run):
        own = grid.column(parameters, first)
        for index in range(first, first + run):
            assert torch.equal(grid.column(parameters, index).scale, own.scale)
            assert torch.equal(grid.column(parameters, index).offset, own.offset)
