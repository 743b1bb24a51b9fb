"""Facts about parameters scaled up or down, which learned rounding asks every grid for."""

from __future__ import annotations

import pytest
import torch

from qconv.grids import BlockGrid, CodebookGrid, FloatGrid, SuperBlockGrid, UniformGrid

GRIDS = [
    UniformGrid(bits=4, symmetric=True, group_size=64),
    UniformGrid(bits=4, symmetric=False, group_size=32, scale_dtype="bfloat16"),
    UniformGrid(bits=8, symmetric=True, group_size="channel", scale_dtype="float32"),
    UniformGrid(bits=3, symmetric=False, group_size="tensor"),
    CodebookGrid(codebook="nf4", search="absmax"),
    CodebookGrid(codebook="nf4", double_quant=True),
    FloatGrid(scope="tensor", scale_dtype="float16"),
    FloatGrid(scope="channel", scale_dtype="bfloat16"),
    FloatGrid(scope="block"),
    *(BlockGrid(type=type_) for type_ in ("q4_0", "q4_1", "q8_0")),
    *(SuperBlockGrid(type=type_) for type_ in ("q2_k", "q3_k", "q4_k", "q6_k")),
]


def weight() -> torch.Tensor:
    return torch.randn(6, 512, generator=torch.Generator().manual_seed(0)) * 0.1


def factor(grid) -> torch.Tensor:
    shape = (6, 512 // grid.columns(512)) if grid.rows_independent else (1, 1)
    return 0.8 + 0.4 * torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_every_code_is_worth_the_factor_times_as_much(grid):
    codes, parameters = grid.quantize(weight())
    scaled = grid.rescaled(parameters, factor(grid))
    before = grid.decode(codes, parameters).view(6, -1, grid.columns(512))
    expected = before * factor(grid)[..., None]
    # Scale and minimum may each be half a unit of their dtype off.
    unit = 2.0**-9 if getattr(grid, "scale_dtype", "") == "bfloat16" else 2.0**-11
    slack = 4 * unit * before.abs().amax(-1, keepdim=True)
    assert ((grid.decode(codes, scaled).view_as(before) - expected).abs() <= slack).all()


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_what_comes_out_is_stored_as_the_layout_says_and_the_input_stays(grid):
    _, parameters = grid.quantize(weight())
    kept = {name: value.clone() for name, value in parameters.items()}
    scaled = grid.rescaled(parameters, factor(grid))
    layout = grid.layout((6, 512))
    assert {"codes", *scaled} == set(layout)
    for name, value in scaled.items():
        assert (tuple(value.shape), f"{value.dtype}") == (
            layout[name][0],
            f"torch.{layout[name][1]}",
        )
        assert torch.equal(parameters[name], kept[name])


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_a_factor_of_one_changes_nothing(grid):
    _, parameters = grid.quantize(weight())
    scaled = grid.rescaled(parameters, torch.ones_like(factor(grid)))
    assert all(torch.equal(scaled[name], value) for name, value in parameters.items())


def test_a_uniform_scale_stays_finite_and_off_zero():
    grid = UniformGrid(bits=4, symmetric=True, group_size="channel")
    parameters = {"scale": torch.tensor([[6e4], [-6e-8]], dtype=torch.float16)}
    scaled = grid.rescaled(parameters, torch.tensor([[4.0], [0.1]]))["scale"]
    assert scaled.flatten().tolist() == [65504.0, -(2.0**-24)]


def test_a_block_scale_stays_finite():
    grid = BlockGrid(type="q8_0")
    parameters = {"scale": torch.tensor([[6e4, -6e4]], dtype=torch.float16)}
    scaled = grid.rescaled(parameters, torch.tensor([[2.0, 2.0]]))["scale"]
    assert scaled.tolist() == [[65504.0, -65504.0]]
