"""Block grids: what they state, refuse and decode. Bytes are judged in tests/kernels."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from llama_oracle import TYPES, ggml_quantize
from qconv.errors import UnsupportedGrid, UsageError
from qconv.grids import BlockGrid, Grid, grid_from_spec

NAMES = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]


def _grid(name: str) -> BlockGrid:
    return BlockGrid(type=name, search="ggml")


def _weight(rows: int = 6, columns: int = 96) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_comes_back_from_its_spec(name):
    grid = _grid(name)
    assert isinstance(grid, Grid)
    assert grid_from_spec(grid.spec()) == grid
    assert grid != BlockGrid(type=name)
    assert grid.name == name


@pytest.mark.parametrize("name", NAMES)
def test_decoding_is_what_the_gguf_library_decodes(name):
    weight = _weight()
    codes, parameters = _grid(name).quantize(weight)
    stored = ggml_quantize(name, weight.numpy())
    expected = dequantize(stored, getattr(gguf.GGMLQuantizationType, name.upper()))
    values = _grid(name).decode(codes, parameters).numpy()
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", NAMES)
def test_layout_and_size_are_as_declared(name):
    weight = _weight()
    codes, parameters = _grid(name).quantize(weight)
    found = {"codes": codes, **parameters}
    assert _grid(name).layout((6, 96)) == {
        key: (tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for key, value in found.items()
    }
    assert _grid(name).bits_per_weight((6, 96)) == TYPES[name][2] / 4
    assert _grid(name).columns(96) == 32
    assert _grid(name).rows_independent


@pytest.mark.parametrize("name", NAMES)
def test_columns_agree_with_decoding(name):
    grid = _grid(name)
    codes, parameters = grid.quantize(_weight())
    values = grid.decode(codes, parameters)
    for index in range(0, 96, 5):
        column = grid.column(parameters, index)
        assert torch.equal(column.scale * codes[:, index].float() + column.offset, values[:, index])
        assert column.lowest <= int(codes[:, index].min())
        assert int(codes[:, index].max()) <= column.highest


@pytest.mark.parametrize("name", NAMES)
def test_rounding_finds_the_nearest_value(name):
    grid = _grid(name)
    weight = _weight(3, 64)
    _, parameters = grid.quantize(weight)
    away = (weight - grid.decode(grid.round(weight, parameters), parameters)).abs()
    for index in range(64):
        column = grid.column(parameters, index)
        every = torch.arange(column.lowest, column.highest + 1)
        values = column.scale[:, None] * every + column.offset[:, None]  # (rows, codes)
        best = (values - weight[:, index, None]).abs().amin(1)
        torch.testing.assert_close(away[:, index], best, rtol=1e-5, atol=1e-7)


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
    weight, importance = _weight(), torch.rand(96)
    _, parameters = _grid(name).quantize(weight, importance)
    fitted = _grid(name).fit(weight, importance)
    assert fitted.keys() == parameters.keys()
    assert all(torch.equal(fitted[key], parameters[key]) for key in fitted)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_modified(name):
    grid, weight, importance = _grid(name), _weight(), torch.rand(96)
    kept = weight.clone(), importance.clone()
    codes, parameters = grid.quantize(weight, importance)
    held = codes.clone(), {key: value.clone() for key, value in parameters.items()}
    grid.round(weight, parameters)
    grid.decode(codes, parameters)
    grid.column(parameters, 40)
    assert torch.equal(weight, kept[0])
    assert torch.equal(importance, kept[1])
    assert torch.equal(codes, held[0])
    assert all(torch.equal(parameters[key], held[1][key]) for key in parameters)


def test_a_slice_quantizes_like_its_copy():
    wide = _weight(8, 192)
    part = wide[1:7:2, 32:128]
    codes, parameters = _grid("q5_0").quantize(part)
    copied, _ = _grid("q5_0").quantize(part.clone())
    assert torch.equal(codes, copied)
    assert parameters["scale"].shape == (3, 3)


def test_columns_that_do_not_fill_blocks_are_refused_with_sizes_that_do():
    with pytest.raises(
        UnsupportedGrid, match=r"tensor 'x': 100 columns .* q8_0's block of 32 \(96 or 128"
    ):
        _grid("q8_0").check_shape((4, 100), "x")
    with pytest.raises(UnsupportedGrid, match=r"block of 32 \(32 would be\)"):
        _grid("q8_0").quantize(torch.zeros(2, 8))


def test_other_than_matrices_are_refused():
    with pytest.raises(UnsupportedGrid, match=r"shape \(4,\) is not \(rows, columns\)"):
        _grid("q4_0").check_shape((4,))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedGrid, match=r"3-D torch.float32; grids work on 2-D float32"):
        _grid("q4_0").quantize(torch.zeros(2, 2, 32))
    with pytest.raises(UnsupportedGrid, match=r"2-D torch.float16; .* call \.float\(\) first"):
        _grid("q4_0").quantize(torch.zeros(2, 32, dtype=torch.float16))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(bad):
    weight = _weight()
    weight[3, 40] = bad
    with pytest.raises(UnsupportedGrid, match="1 values that are not finite.* row 3, column 40"):
        _grid("q4_0").quantize(weight)
    _, parameters = _grid("q4_0").quantize(_weight())
    with pytest.raises(UnsupportedGrid, match="not finite"):
        _grid("q4_0").round(weight, parameters)


@pytest.mark.parametrize(("name", "field"), [("q8_0", "scale"), ("q4_1", "minimum")])
def test_scales_beyond_float16_are_refused(name, field):
    weight = torch.full((2, 64), -1.0)
    weight[1, 40] = 1e9 if field == "scale" else -1.0
    if field == "minimum":
        weight[1, 32:] = -70000.0
    with pytest.raises(
        UnsupportedGrid, match=rf"row 1, columns 32\.\.63: .* {field} that {name} cannot store"
    ):
        _grid(name).quantize(weight)


def test_importance_must_suit():
    weight = _weight()
    with pytest.raises(UnsupportedGrid, match=r"importance is \(32,\).* needs \(96,\)"):
        _grid("q4_0").quantize(weight, torch.ones(32))
    with pytest.raises(UnsupportedGrid, match=r"importance ranges from -1\.0 to 1\.0"):
        _grid("q4_0").quantize(weight, torch.linspace(-1, 1, 96))
    with pytest.raises(UnsupportedGrid, match="importance ranges from .*must be finite"):
        _grid("q4_0").quantize(weight, torch.full((96,), float("nan")))


def test_unknown_options_are_refused():
    with pytest.raises(UsageError, match="block grid: type is 'q9_9'; choose q4_0 or"):
        BlockGrid(type="q9_9")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="block grid: search is 'fast'; choose default or ggml"):
        BlockGrid(type="q4_0", search="fast")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="block grid .*'sirch'.*options are type, search"):
        grid_from_spec({"family": "block", "type": "q4_0", "sirch": "ggml"})
    with pytest.raises(UsageError, match="grid family is 'cube'; choose 'block'"):
        grid_from_spec({"family": "cube"})


def test_the_package_offers_what_it_lists_and_nothing_else():
    import qconv.grids as package

    assert package.__all__ == sorted(package.__all__)
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'Sphere'"):
        package.Sphere  # noqa: B018


def test_importing_the_package_loads_no_heavy_library():
    import subprocess
    import sys

    code = (
        "import sys, qconv.grids as g; g.BlockGrid(type='q4_0').spec(); g.grid_from_spec;"
        "print([m for m in ('torch', 'numba', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_default_search_errs_less_than_llama_cpps():
    weight = _weight()
    best = BlockGrid(type="q8_0")
    codes, parameters = best.quantize(weight)
    theirs = _grid("q8_0").decode(*_grid("q8_0").quantize(weight))
    mine = best.decode(codes, parameters)
    assert float((mine - weight).square().sum()) < float((theirs - weight).square().sum())
    assert best.layout((weight.shape[0], weight.shape[1])).keys() == {"codes", *parameters}
