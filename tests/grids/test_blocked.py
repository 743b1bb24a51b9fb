"""Block and super-block grids of all types: what they state, refuse and decode, by either search.

Bytes and errors of the searches are judged in tests/kernels.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from llama_oracle import TYPES, ggml_quantize
from qconv.errors import UnsupportedGrid, UsageError
from qconv.grids import BlockGrid, Grid, SuperBlockGrid, grid_from_spec
from qconv.testing import check_grid
from qconv_gguf._packing import pack

ROWS, COLUMNS = 5, 512


def _grid(name: str, search: str) -> BlockGrid | SuperBlockGrid:
    family = SuperBlockGrid if name.endswith("_k") else BlockGrid
    return family(type=name, search=search)


GRIDS = [_grid(name, search) for name in TYPES for search in ("default", "ggml")]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.type}-{grid.search}")
every_type = pytest.mark.parametrize("name", TYPES)
either_family = pytest.mark.parametrize(
    ("family", "title", "name"),
    [("block", "block grid", "q4_0"), ("superblock", "super-block grid", "q4_k")],
)


def _weight(rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def _importance() -> torch.Tensor:
    return torch.rand(COLUMNS, generator=torch.Generator().manual_seed(1)) + 0.01


def _assert_gguf_reads(grid: Grid, data: np.ndarray, values: torch.Tensor) -> None:
    """The gguf library decodes ``data`` to ``values``, bit for bit."""
    expected = dequantize(data, getattr(gguf.GGMLQuantizationType, grid.name.upper()))
    np.testing.assert_array_equal(values.numpy().view(np.uint32), expected.view(np.uint32))


# --- what the grid states -------------------------------------------------------------------------


@every_grid
def test_a_grid_keeps_to_the_plugin_api(grid):
    assert isinstance(grid, Grid)
    check_grid(grid)


@every_grid
def test_equal_specs_make_equal_grids(grid):
    for other in (
        grid_from_spec(grid.spec()),
        copy.deepcopy(grid),
        pickle.loads(pickle.dumps(grid)),
    ):
        assert other == grid
        assert hash(other) == hash(grid)
        assert type(other) is type(grid)
    assert [other for other in GRIDS if other == grid] == [grid]
    assert grid.name == grid.type


@every_type
def test_the_search_is_the_default_one_unless_named(name):
    spec = dict(_grid(name, "default").spec())
    del spec["search"]
    assert grid_from_spec(spec) == _grid(name, "default")


@every_grid
def test_a_grid_cannot_change(grid):
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.search = "ggml"
    assert not hasattr(grid, "__dict__")


@every_grid
def test_layout_and_size_are_as_declared(grid):
    codes, parameters = grid.quantize(_weight())
    assert grid.layout((ROWS, COLUMNS)) == {
        key: (tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for key, value in {"codes": codes, **parameters}.items()
    }
    _, columns, nbytes = TYPES[grid.name]
    assert grid.bits_per_weight((ROWS, COLUMNS)) == nbytes * 8 / columns
    assert grid.columns(COLUMNS) == columns
    assert grid.rows_independent


# --- values ---------------------------------------------------------------------------------------


@every_grid
def test_packed_codes_decode_to_what_the_gguf_library_reads(grid):
    weight = _weight()
    weight[3] = 0
    codes, parameters = grid.quantize(weight, _importance())
    data = pack(grid.name, codes, parameters)
    _assert_gguf_reads(grid, data.numpy(), grid.decode(codes, parameters))


@every_type
@pytest.mark.parametrize("importance", [None, _importance()], ids=["plain", "weighted"])
def test_the_ggml_search_decodes_to_what_llama_cpp_stores(name, importance):
    grid, weight = _grid(name, "ggml"), _weight()
    weight[3] = 0
    given = None if importance is None else importance.numpy()
    values = grid.decode(*grid.quantize(weight, importance))
    _assert_gguf_reads(grid, ggml_quantize(name, weight.numpy(), given), values)


@every_type
@pytest.mark.parametrize("importance", [None, _importance()], ids=["plain", "weighted"])
def test_the_default_search_errs_less_than_llama_cpps(name, importance):
    weight = _weight()
    errors = []
    for search in ("default", "ggml"):
        grid = _grid(name, search)
        away = (grid.decode(*grid.quantize(weight, importance)) - weight).double().square()
        errors.append(float((away if importance is None else away * importance).sum()))
    assert errors[0] < errors[1]


@every_grid
def test_columns_agree_with_decoding(grid):
    codes, parameters = grid.quantize(_weight())
    values = grid.decode(codes, parameters)
    # Only Q6_K's products, of 11, 8 and 6 bits, do not fit float32's 24.
    rtol = 1e-6 if grid.name == "q6_k" else 0.0
    for index in range(0, COLUMNS, 13):
        column = grid.column(parameters, index)
        got = column.scale * codes[:, index].float() + column.offset
        torch.testing.assert_close(got, values[:, index], rtol=rtol, atol=rtol / 10)
        assert column.lowest <= int(codes[:, index].min())
        assert int(codes[:, index].max()) <= column.highest


@every_grid
def test_rounding_finds_the_nearest_value(grid):
    weight = _weight(2, 256)
    parameters = grid.fit(weight)
    away = (weight - grid.decode(grid.round(weight, parameters), parameters)).abs()
    for index in range(256):
        column = grid.column(parameters, index)
        every = torch.arange(column.lowest, column.highest + 1)
        values = column.scale[:, None] * every + column.offset[:, None]  # (rows, codes)
        best = (values - weight[:, index, None]).abs().amin(1)
        torch.testing.assert_close(away[:, index], best, rtol=1e-5, atol=1e-6)


@every_grid
def test_zero_row_stays_zero(grid):
    weight = _weight()
    weight[2] = 0
    for importance in (None, _importance()):
        codes, parameters = grid.quantize(weight, importance)
        assert not grid.decode(codes, parameters)[2].any()
        assert not grid.decode(grid.round(weight, parameters), parameters)[2].any()


@every_grid
def test_fit_gives_the_parameters_of_quantize(grid):
    _, parameters = grid.quantize(_weight(), _importance())
    fitted = grid.fit(_weight(), _importance())
    assert fitted.keys() == parameters.keys()
    assert all(torch.equal(fitted[key], parameters[key]) for key in fitted)


@every_grid
def test_inputs_are_not_modified(grid):
    weight, importance = _weight(), _importance()
    codes, parameters = grid.quantize(weight, importance)
    held = codes.clone(), {key: value.clone() for key, value in parameters.items()}
    grid.round(weight, parameters)
    grid.decode(codes, parameters)
    grid.column(parameters, 300)
    assert torch.equal(weight, _weight())
    assert torch.equal(importance, _importance())
    assert torch.equal(codes, held[0])
    assert all(torch.equal(parameters[key], held[1][key]) for key in parameters)


@every_grid
def test_a_slice_that_carries_a_gradient_quantizes_like_its_copy(grid):
    part = _weight(8, 3 * 256)[1:7:2, 256:]
    codes, parameters = grid.quantize(part.clone())
    taken, found = grid.quantize(part.detach().requires_grad_())
    assert torch.equal(codes, taken)
    assert all(torch.equal(parameters[key], found[key]) for key in parameters)
    assert torch.equal(grid.round(part, parameters), grid.round(part.clone(), parameters))


# --- what it refuses ------------------------------------------------------------------------------


@every_grid
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_with_their_place(grid, bad):
    weight = _weight()
    parameters = grid.fit(weight)
    weight[3, 40] = bad
    for call in (lambda: grid.quantize(weight), lambda: grid.round(weight, parameters)):
        with pytest.raises(
            UnsupportedGrid,
            match=f"^weight has 1 values that are not finite, the first in row 3, column 40: {bad};"
            " .* repair the checkpoint or skip the tensor$",
        ):
            call()


@every_grid
def test_scales_beyond_float16_are_refused_with_their_place(grid):
    weight = torch.ones(2, COLUMNS)
    weight[1, 300] = 1e12
    first, last = (256, 511) if grid.name.endswith("_k") else (288, 319)
    with pytest.raises(
        UnsupportedGrid,
        match=rf"^row 1, columns {first}\.\.{last}: values up to 1e\+12 need a (super )?scale that "
        f"{grid.name} cannot store, float16 ends at 65504; keep the tensor in bfloat16$",
    ):
        grid.quantize(weight)


@every_grid
def test_other_than_float32_matrices_are_refused(grid):
    with pytest.raises(UnsupportedGrid, match=r"tensor 'x': shape \(4,\) is not .* copy this one$"):
        grid.check_shape((4,), "x")
    with pytest.raises(UnsupportedGrid, match=r"shape \(0, 512\) is not .* both at least 1"):
        grid.quantize(torch.zeros(0, 512))
    with pytest.raises(UnsupportedGrid, match=r"3-D torch.float32; grids work on 2-D float32"):
        grid.quantize(torch.zeros(2, 2, 256))
    with pytest.raises(UnsupportedGrid, match=r"2-D torch.float16; .* call \.float\(\) first"):
        grid.quantize(torch.zeros(2, 256, dtype=torch.float16))


@every_grid
def test_importance_must_suit(grid):
    weight, ones = _weight(), torch.ones(COLUMNS)
    with pytest.raises(UnsupportedGrid, match=r"importance is \(32,\) .* needs \(512,\) torch"):
        grid.quantize(weight, torch.ones(32))
    with pytest.raises(
        UnsupportedGrid, match=r"importance is \(512,\) torch.float64; .* torch.float32$"
    ):
        grid.quantize(weight, ones.double())
    with pytest.raises(UnsupportedGrid, match=r"ranges from -1\.0 to 1\.0; .* not negative"):
        grid.quantize(weight, torch.linspace(-1, 1, COLUMNS))
    for value in (float("nan"), float("inf")):
        with pytest.raises(UnsupportedGrid, match="ranges from .* must be finite .* overflow$"):
            grid.quantize(weight, ones * value)


@either_family
def test_unknown_options_are_refused(family, title, name):
    spec = {"family": family, "type": name}
    with pytest.raises(UsageError, match=f"^{title}: type is 'q9_9'; choose q._. or q._. or"):
        grid_from_spec({**spec, "type": "q9_9"})
    with pytest.raises(UsageError, match=rf"^{title}: type is \['q4_0'\]; choose"):
        grid_from_spec({**spec, "type": ["q4_0"]})
    with pytest.raises(UsageError, match=f"^{title}: search is 'fast'; choose default or ggml$"):
        grid_from_spec({**spec, "search": "fast"})
    with pytest.raises(UsageError, match=f"^{title} .*'sirch'.*; options are type, search$"):
        grid_from_spec({**spec, "sirch": "ggml"})
    with pytest.raises(UsageError, match=f"^{title} .*missing.*'type'; options are type, search$"):
        grid_from_spec({"family": family})


@pytest.mark.parametrize(
    ("family", "title", "name"),
    [("block", "block grid", "q4_k"), ("superblock", "super-block grid", "q4_0")],
)
def test_a_type_of_the_other_family_is_refused(family, title, name):
    with pytest.raises(UsageError, match=f"^{title}: type is '{name}'; choose"):
        grid_from_spec({"family": family, "type": name})


@pytest.mark.parametrize("value", [1e9, 1e14, 1e16, 1e19, 1e25, 3e38])
@every_grid
def test_a_huge_value_is_refused_and_never_stored_as_zero(grid, value):
    weight = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    weight[2, 3] = value
    with pytest.raises(UnsupportedGrid, match="values up to"):
        grid.quantize(weight)
