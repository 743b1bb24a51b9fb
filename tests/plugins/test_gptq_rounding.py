"""The compiled loops of GPTQ do what their torch reference does, on every kind of grid."""

from __future__ import annotations

import pytest
import torch

from qconv.grids import (
    BlockGrid,
    CodebookGrid,
    FloatGrid,
    SuperBlockGrid,
    UniformGrid,
)
from qconv_gptq import _rounding
from qconv_gptq._rounding import round_columns
from qconv_gptq._steps import Book, Steps, steps_of

GRIDS = [
    UniformGrid(bits=4, symmetric=True, group_size=64),
    UniformGrid(bits=5, symmetric=False, group_size=64),
    UniformGrid(bits=8, symmetric=True, group_size="tensor"),
    BlockGrid(type="q4_1"),
    SuperBlockGrid(type="q4_k"),
    SuperBlockGrid(type="q6_k"),
    CodebookGrid(codebook="nf4"),
    CodebookGrid(codebook="fp4", double_quant=True),
    FloatGrid(scope="tensor"),
    FloatGrid(scope="channel"),
    FloatGrid(scope="block", block=(32, 64)),
    FloatGrid(scope="block", block=(40, 50)),
]


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
    columns = max(64, grid.columns(64))
    w, place, upper, d = problem(70, columns)
    steps = steps_of(grid, grid.fit(w), (70, columns))
    compiled, reference = both(steps, w, place, upper, d, monkeypatch)
    assert torch.equal(compiled.codes, reference.codes)
    assert torch.equal(compiled.loss, reference.loss)


def test_a_book_has_every_value_once_in_order_and_no_code_that_is_nan():
    float_column = FloatGrid(scope="tensor").column({"scale": torch.ones(1, 1)}, 0)
    book = Book.of(float_column.codebook, 0)
    assert len(book.values) == 253
    assert bool((book.values.diff() > 0).all())
    assert len(book.bounds) == 255
    assert not {0x7F, 0xFF, 0x80} & set(book.codes.tolist())  # two NaNs, and minus zero
    four_bits = Book.of(CodebookGrid(codebook="fp4").table(), 0)
    assert (len(four_bits.values), len(four_bits.bounds)) == (15, 15)
    assert four_bits.codes.tolist() == [11, 10, 13, 12, 15, 14, 9, 0, 1, 6, 7, 4, 5, 2, 3]


def test_codes_start_where_the_grid_says():
    book = Book.of(torch.tensor([3.0, 1.0, 2.0]), -1)
    assert book.values.tolist() == [1, 2, 3]
    assert book.codes.tolist() == [0, 1, -1]
    assert book.bounds.tolist() == [1.5, 2.5, float("inf")]


@pytest.mark.parametrize(
    "grid",
    [
        UniformGrid(bits=4, symmetric=False, group_size=64),
        CodebookGrid(codebook="fp4"),
        FloatGrid(scope="block", block=(4, 50)),
    ],
    ids=lambda grid: grid.name,
)
def test_without_feedback_it_is_the_nearest_code(grid):
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
