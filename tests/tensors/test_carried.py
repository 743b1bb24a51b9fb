"""A tensor carried over to another grid has the values it had, or is refused with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qconv.errors import Unsupported, UnsupportedGrid
from qconv.grids import SuperBlockGrid, UniformGrid
from qconv.tensors import QuantTensor, carried_over

GRID = UniformGrid(bits=4, symmetric=True, group_size=32)


def made(grid: UniformGrid, rows: int = 4, columns: int = 64, seed: int = 0) -> QuantTensor:
    generator = torch.Generator().manual_seed(seed)
    codes, parameters = grid.quantize(torch.randn(rows, columns, generator=generator))
    return QuantTensor(grid=grid, codes=codes, parameters=parameters)


def by_hand(grid: UniformGrid, codes: list, scale: list, zero: list | None = None) -> QuantTensor:
    kind = torch.int8 if grid.symmetric else torch.uint8
    parameters = {"scale": torch.tensor(scale, dtype=getattr(torch, grid.scale_dtype))}
    if zero is not None:
        parameters["zero_point"] = torch.tensor(zero, dtype=torch.uint8)
    return QuantTensor(grid=grid, codes=torch.tensor(codes, dtype=kind), parameters=parameters)


def assert_same_values(tensor: QuantTensor, grid: UniformGrid) -> QuantTensor:
    before = tensor.codes.clone(), {n: v.clone() for n, v in tensor.parameters.items()}
    carried = carried_over(tensor, grid)
    assert carried.grid == grid
    assert torch.equal(carried.dequantize(), tensor.dequantize())
    assert torch.equal(tensor.codes, before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in tensor.parameters.items())
    return carried


def test_an_equal_grid_gives_the_tensor_itself():
    tensor = made(GRID)
    assert carried_over(tensor, replace(GRID)) is tensor


def test_how_a_grid_was_fitted_does_not_matter():
    tensor = made(GRID)
    carried = assert_same_values(tensor, replace(GRID, search="absmax"))
    assert carried.codes is tensor.codes


def test_symmetric_codes_get_the_middle_as_their_zero_point():
    carried = assert_same_values(made(GRID), replace(GRID, symmetric=False))
    assert set(carried.parameters["zero_point"].flatten().tolist()) == {8}
    wide = assert_same_values(made(GRID), replace(GRID, symmetric=False, bits=8))
    assert set(wide.parameters["zero_point"].flatten().tolist()) == {8}


def test_a_zero_point_in_the_middle_can_be_left_out():
    tensor = made(GRID)
    there = carried_over(tensor, replace(GRID, symmetric=False))
    assert carried_over(there, GRID).same(tensor)


def test_zero_points_elsewhere_are_refused_where_codes_do_not_fit():
    grid = replace(GRID, symmetric=False)
    tensor = by_hand(grid, [[0] * 31 + [15], [3] * 32], [[1.0], [1.0]], [[3], [3]])
    with pytest.raises(
        Unsupported,
        match=r"tensor 'w': 1 of 2 groups do not fit int4_g32, which holds levels -8 to 7: the "
        r"first, in row 0, group 0, has levels -3 to 12; choose another format",
    ):
        carried_over(tensor, GRID, "w")
    assert_same_values(tensor, replace(GRID, bits=8))


def test_zero_points_move_where_the_range_is_too_small_for_them():
    grid = replace(GRID, bits=8, symmetric=False)
    tensor = by_hand(grid, [[100] * 16 + [107] * 16], [[0.5]], [[104]])
    carried = assert_same_values(tensor, replace(grid, bits=4))
    assert carried.parameters["zero_point"].tolist() == [[12]]
    far = by_hand(grid, [[100] * 32], [[0.5]], [[120]])
    with pytest.raises(Unsupported, match="uint4_g32, which holds 16 neighbouring levels, zero"):
        carried_over(far, replace(grid, bits=4))


def test_more_bits_hold_the_same_codes_and_fewer_only_small_ones():
    tensor = made(GRID)
    assert torch.equal(assert_same_values(tensor, replace(GRID, bits=8)).codes, tensor.codes)
    with pytest.raises(Unsupported, match="do not fit int3_g32, which holds levels -4 to 3"):
        carried_over(tensor, replace(GRID, bits=3))


def test_narrow_grids_take_positive_scales():
    tensor = by_hand(GRID, [[7, -7] * 16], [[-0.5]])
    carried = assert_same_values(tensor, replace(GRID, narrow=True))
    assert carried.parameters["scale"].tolist() == [[0.5]]
    full = by_hand(GRID, [[7, -8] * 16], [[0.5]])
    with pytest.raises(Unsupported, match="holds levels -7 to 7"):
        carried_over(full, replace(GRID, narrow=True))


def test_scales_are_repeated_for_smaller_groups():
    for size in ("channel", "tensor", 64):
        tensor = made(replace(GRID, group_size=size))
        assert_same_values(tensor, replace(GRID, group_size=16))
        assert_same_values(tensor, replace(GRID, group_size="channel"))


def test_groups_join_where_their_scales_are_equal():
    tensor = made(replace(GRID, group_size="channel"))
    there = carried_over(tensor, replace(GRID, group_size=16))
    assert carried_over(there, replace(GRID, group_size="channel")).same(tensor)
    assert carried_over(there, replace(GRID, group_size=32, symmetric=False)).shape == (4, 64)
    with pytest.raises(Unsupported, match="1 of 1 scales per tensor would have to stand for sev"):
        carried_over(tensor, replace(GRID, group_size="tensor"))
    with pytest.raises(Unsupported, match="4 of 4 scales per group of 64 columns would have to"):
        carried_over(made(GRID), replace(GRID, group_size="channel"))
    alike = carried_over(made(replace(GRID, group_size="tensor")), GRID)
    assert_same_values(alike, replace(GRID, group_size="tensor", symmetric=False))


def test_groups_that_do_not_divide_each_other_are_refused():
    tensor = made(replace(GRID, group_size=32), columns=96)
    with pytest.raises(Unsupported, match="groups of 32 columns do not make up groups of 48"):
        carried_over(tensor, replace(GRID, group_size=48))
    with pytest.raises(UnsupportedGrid, match="tensor 'w': 96 columns are not a multiple of"):
        carried_over(tensor, replace(GRID, group_size=64), "w")


def test_scales_change_their_dtype_only_without_a_loss():
    tensor = made(replace(GRID, scale_dtype="bfloat16"))
    carried = assert_same_values(tensor, replace(GRID, scale_dtype="float32"))
    assert carried.parameters["scale"].dtype == torch.float32
    assert_same_values(carried, replace(GRID, scale_dtype="bfloat16"))


@pytest.mark.parametrize("scale", [1e-8, 1e6, 1.0 + 2.0**-20])
def test_scales_that_do_not_fit_are_counted_and_shown(scale):
    tensor = by_hand(replace(GRID, scale_dtype="float32"), [[1] * 64], [[0.5, scale]])
    with pytest.raises(
        Unsupported,
        match=r"tensor 'w': 1 of 2 scales do not fit float16 exactly, the first in row 0, group 1",
    ):
        carried_over(tensor, GRID, "w")


def test_grids_of_other_families_hold_only_themselves():
    weight = torch.randn(2, 256)
    grid = SuperBlockGrid(type="q4_k")
    codes, parameters = grid.quantize(weight)
    tensor = QuantTensor(grid=grid, codes=codes, parameters=parameters)
    assert carried_over(tensor, SuperBlockGrid(type="q4_k")) is tensor
    with pytest.raises(Unsupported, match="tensor 'w': codes of q4_k .* cannot be written as int4"):
        carried_over(tensor, GRID, "w")


grids = st.builds(
    UniformGrid,
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    group_size=st.sampled_from([8, 16, 32, "channel", "tensor"]),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
)


@settings(max_examples=150, deadline=None)
@given(source=grids, target=grids, seed=st.integers(0, 9))
def test_whatever_is_carried_over_keeps_its_values(source, target, seed):
    tensor = made(source, rows=3, columns=32, seed=seed)
    try:
        carried = carried_over(tensor, target)
    except Unsupported:
        return
    assert torch.equal(carried.dequantize(), tensor.dequantize())
