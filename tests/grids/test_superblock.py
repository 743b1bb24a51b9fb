"""Super-block grids: what they state, refuse and decode. Bytes are judged in tests/kernels."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from llama_oracle import TYPES, ggml_quantize
from qconv.errors import UnsupportedGrid, UsageError
from qconv.grids import Grid, SuperBlockGrid, grid_from_spec

NAMES = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]


def _grid(name: str) -> SuperBlockGrid:
    return SuperBlockGrid(type=name, search="ggml")


def _weight(rows: int = 5, columns: int = 512) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_comes_back_from_its_spec(name):
    grid = _grid(name)
    assert isinstance(grid, Grid)
    assert grid_from_spec(grid.spec()) == grid
    assert grid != SuperBlockGrid(type=name)
    assert grid.name == name


@pytest.mark.parametrize("name", NAMES)
def test_decoding_is_what_the_gguf_library_decodes(name):
    weight, importance = _weight(), torch.rand(512)
    weight[3] = 0
    codes, parameters = _grid(name).quantize(weight, importance)
    stored = ggml_quantize(name, weight.numpy(), importance.numpy())
    expected = dequantize(stored, getattr(gguf.GGMLQuantizationType, name.upper()))
    values = _grid(name).decode(codes, parameters).numpy()
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", NAMES)
def test_layout_and_size_are_as_declared(name):
    codes, parameters = _grid(name).quantize(_weight())
    assert _grid(name).layout((5, 512)) == {
        key: (tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for key, value in {"codes": codes, **parameters}.items()
    }
    assert _grid(name).bits_per_weight((5, 512)) == TYPES[name][2] / 32
    assert _grid(name).columns(512) == 256
    assert _grid(name).rows_independent


@pytest.mark.parametrize("name", NAMES)
def test_columns_agree_with_decoding(name):
    grid = _grid(name)
    codes, parameters = grid.quantize(_weight())
    values = grid.decode(codes, parameters)
    for index in range(0, 512, 13):
        column = grid.column(parameters, index)
        got = column.scale * codes[:, index].float() + column.offset
        torch.testing.assert_close(got, values[:, index], rtol=1e-6, atol=1e-7)
        assert int(codes[:, index].max()) <= column.highest
        assert column.lowest == 0


@pytest.mark.parametrize("name", NAMES)
def test_rounding_finds_the_nearest_value(name):
    grid = _grid(name)
    weight = _weight(2, 256)
    _, parameters = grid.quantize(weight)
    away = (weight - grid.decode(grid.round(weight, parameters), parameters)).abs()
    for index in range(256):
        column = grid.column(parameters, index)
        every = torch.arange(column.highest + 1)
        values = column.scale[:, None] * every + column.offset[:, None]  # (rows, codes)
        best = (values - weight[:, index, None]).abs().amin(1)
        torch.testing.assert_close(away[:, index], best, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_zero_row_stays_zero(name):
    weight = _weight()
    weight[2] = 0
    grid = _grid(name)
    codes, parameters = grid.quantize(weight)
    assert not grid.decode(codes, parameters)[2].any()
    assert not grid.decode(grid.round(weight, parameters), parameters)[2].any()


@pytest.mark.parametrize("name", NAMES)
def test_fit_gives_the_parameters_of_quantize(name):
    weight, importance = _weight(), torch.rand(512)
    _, parameters = _grid(name).quantize(weight, importance)
    fitted = _grid(name).fit(weight, importance)
    assert fitted.keys() == parameters.keys()
    assert all(torch.equal(fitted[key], parameters[key]) for key in fitted)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_modified(name):
    grid, weight, importance = _grid(name), _weight(), torch.rand(512)
    kept = weight.clone(), importance.clone()
    codes, parameters = grid.quantize(weight, importance)
    held = codes.clone(), {key: value.clone() for key, value in parameters.items()}
    grid.round(weight, parameters)
    grid.decode(codes, parameters)
    grid.column(parameters, 300)
    assert torch.equal(weight, kept[0])
    assert torch.equal(importance, kept[1])
    assert torch.equal(codes, held[0])
    assert all(torch.equal(parameters[key], held[1][key]) for key in parameters)


def test_columns_that_do_not_fill_super_blocks_are_refused_with_what_would_suit():
    with pytest.raises(
        UnsupportedGrid,
        match=r"tensor 'x': 576 columns .* q4_k's block of 256 \(512 or 768 .* use q8_0 or q5_0",
    ):
        _grid("q4_k").check_shape((4, 576), "x")
    with pytest.raises(UnsupportedGrid, match=r"block of 256 \(256 would be\); use float16"):
        _grid("q6_k").quantize(torch.zeros(2, 100))


def test_scales_beyond_float16_are_refused():
    weight = torch.ones(2, 512)
    weight[1, 300] = 1e12
    with pytest.raises(
        UnsupportedGrid,
        match=r"row 1, columns 256\.\.511: values up to 1e\+12 need a super scale that q4_k cannot",
    ):
        _grid("q4_k").quantize(weight)


def test_values_that_are_not_finite_are_refused():
    weight = _weight()
    weight[4, 511] = float("nan")
    with pytest.raises(UnsupportedGrid, match="not finite, the first in row 4, column 511: nan"):
        _grid("q6_k").quantize(weight)


def test_unknown_options_are_refused():
    with pytest.raises(UsageError, match="super-block grid: type is 'q4_0'; choose q2_k or"):
        SuperBlockGrid(type="q4_0")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="super-block grid: search is 'fast'"):
        SuperBlockGrid(type="q4_k", search="fast")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="super-block grid .*'bits'.*options are type, search"):
        grid_from_spec({"family": "superblock", "type": "q4_k", "bits": 4})


def test_the_default_search_errs_less_than_llama_cpps():
    weight = _weight()
    best = SuperBlockGrid(type="q4_k")
    codes, parameters = best.quantize(weight)
    theirs = _grid("q4_k").decode(*_grid("q4_k").quantize(weight))
    mine = best.decode(codes, parameters)
    assert float((mine - weight).square().sum()) < float((theirs - weight).square().sum())
    assert best.layout((weight.shape[0], weight.shape[1])).keys() == {"codes", *parameters}
