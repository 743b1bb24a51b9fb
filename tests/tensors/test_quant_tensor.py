"""Facts about quantized tensors: what they check, and that row operations commute with decoding."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qconv.errors import UnsupportedGrid, UsageError
from qconv.grids import (
    ActivationGrid,
    BlockGrid,
    CodebookGrid,
    FloatGrid,
    SuperBlockGrid,
    UniformGrid,
)
from qconv.tensors import QuantTensor

INT4 = UniformGrid(bits=4, symmetric=True, group_size=16)
UINT4 = UniformGrid(bits=4, symmetric=False, group_size=16)
WHOLE = UniformGrid(bits=8, symmetric=True, group_size="tensor")


def quantized(grid=UINT4, rows: int = 12, columns: int = 32, seed: int = 0) -> QuantTensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    codes, parameters = grid.quantize(weight)
    return QuantTensor(grid=grid, codes=codes, parameters=parameters)


@st.composite
def tensors(draw) -> QuantTensor:
    rows, seed = draw(st.integers(1, 9)), draw(st.integers(0, 99))
    family = draw(st.sampled_from(["uniform", "uniform", "block", "superblock", "float", "nf4"]))
    if family == "float":
        return quantized(FloatGrid(scope="channel"), rows, 48, seed)
    if family == "nf4":
        return quantized(CodebookGrid(codebook="nf4"), rows, 128, seed)
    if family == "block":
        kind = draw(st.sampled_from(["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]))
        return quantized(BlockGrid(type=kind, search="ggml"), rows, 64, seed)
    if family == "superblock":
        kind = draw(st.sampled_from(["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]))
        return quantized(SuperBlockGrid(type=kind, search="ggml"), rows, 512, seed)
    symmetric = draw(st.booleans())
    columns = draw(st.sampled_from([16, 48]))
    grid = UniformGrid(
        bits=draw(st.integers(2, 8)),
        symmetric=symmetric,
        narrow=symmetric and draw(st.booleans()),
        group_size=draw(st.sampled_from([8, 16, "channel"])),
        scale_dtype=draw(st.sampled_from(["float16", "bfloat16", "float32"])),
        search="absmax",
    )
    return quantized(grid, rows, columns, seed)


many = settings(max_examples=40, deadline=None)


@given(tensor=tensors(), data=st.data())
@many
def test_taking_rows_commutes_with_dequantizing(tensor, data):
    rows = tensor.shape[0]
    index = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=2 * rows))
    assert torch.equal(tensor.take_rows(index).dequantize(), tensor.dequantize()[index])
    assert tensor.take_rows(torch.tensor(index)).same(tensor.take_rows(index))


@given(tensor=tensors(), data=st.data())
@many
def test_stacking_what_was_split_gives_the_tensor_back(tensor, data):
    rows = tensor.shape[0]
    cuts = sorted(data.draw(st.sets(st.integers(1, rows - 1)))) if rows > 1 else []
    sizes = [stop - start for start, stop in zip([0, *cuts], [*cuts, rows], strict=True)]
    parts = tensor.split_rows(sizes)
    assert [part.shape[0] for part in parts] == sizes
    assert torch.equal(torch.cat([part.dequantize() for part in parts]), tensor.dequantize())
    assert QuantTensor.stack(parts).same(tensor)


def test_it_knows_its_shape_and_size():
    tensor = quantized()
    assert tensor.shape == (12, 32)
    assert tensor.bits_per_weight == 4 + (16 + 4) / 16
    assert tensor.device == torch.device("cpu")
    assert tensor.dequantize().dtype == torch.float32


def test_row_operations_modify_nothing():
    tensor = quantized()
    before = copy.deepcopy(tensor)
    tensor.take_rows([3, 1])
    QuantTensor.stack(tensor.split_rows([4, 8]))
    assert tensor.same(before)


def test_it_travels_between_processes():
    tensor = quantized()
    assert pickle.loads(pickle.dumps(tensor)).same(tensor)


def test_moving_to_where_it_lies_changes_nothing():
    tensor = quantized()
    assert tensor.to("cpu").same(tensor)


def test_a_changed_mapping_does_not_change_the_tensor():
    codes, parameters = UINT4.quantize(torch.ones(2, 16))
    mapping = dict(parameters)
    tensor = QuantTensor(grid=UINT4, codes=codes, parameters=mapping)
    mapping.clear()
    assert set(tensor.parameters) == {"scale", "zero_point"}


def test_same_sees_every_difference():
    tensor = quantized()
    codes, parameters = tensor.codes, dict(tensor.parameters)
    assert tensor.same(QuantTensor(grid=UINT4, codes=codes.clone(), parameters=parameters))
    assert not tensor.same(QuantTensor(grid=UINT4, codes=codes ^ 1, parameters=parameters))
    negated = {**parameters, "scale": -parameters["scale"]}
    assert not tensor.same(QuantTensor(grid=UINT4, codes=codes, parameters=negated))
    assert not tensor.same(tensor.split_rows([6, 6])[0])
    assert not tensor.same(quantized(UniformGrid(bits=4, symmetric=False, group_size=32)))


# --- what it refuses ------------------------------------------------------------------------------


def rebuilt(tensor: QuantTensor, **parameters: torch.Tensor) -> QuantTensor:
    return QuantTensor(
        grid=tensor.grid,
        codes=parameters.pop("codes", tensor.codes),
        parameters={**tensor.parameters, **parameters},
    )


def test_a_parameter_of_another_shape_is_refused():
    text = (
        r"grid uint4_g16: scale is \(12, 1\) float16, but a tensor of shape \(12, 32\) needs "
        r"\(12, 2\) float16"
    )
    with pytest.raises(UnsupportedGrid, match=text):
        rebuilt(quantized(), scale=torch.ones(12, 1, dtype=torch.float16))


def test_a_parameter_of_another_dtype_is_refused():
    with pytest.raises(UnsupportedGrid, match=r"scale is \(12, 2\) float32, .* \(12, 2\) float16"):
        rebuilt(quantized(), scale=torch.ones(12, 2))


def test_codes_of_another_dtype_are_refused():
    with pytest.raises(UnsupportedGrid, match=r"codes is \(12, 32\) int8, .* needs .* uint8"):
        rebuilt(quantized(), codes=torch.zeros(12, 32, dtype=torch.int8))


def test_parameters_of_another_grid_are_refused():
    symmetric = quantized(INT4)
    with pytest.raises(
        UnsupportedGrid, match=r"has parameters \['scale', 'zero_point'\], got \['scale'\]"
    ):
        QuantTensor(
            grid=UINT4, codes=symmetric.codes.to(torch.uint8), parameters=symmetric.parameters
        )


def test_codes_that_are_not_a_matrix_are_refused():
    with pytest.raises(UnsupportedGrid, match="flatten leading dimensions into rows"):
        rebuilt(quantized(), codes=torch.zeros(2, 6, 32, dtype=torch.uint8))


def test_a_shape_that_does_not_suit_the_grid_is_refused():
    tensor = quantized()
    with pytest.raises(UnsupportedGrid, match="20 columns are not a multiple of group size 16"):
        rebuilt(tensor, codes=torch.zeros(12, 20, dtype=torch.uint8))


def test_parts_on_two_devices_are_refused():
    with pytest.raises(UnsupportedGrid, match="scale is on meta, codes on cpu; move both to one"):
        rebuilt(quantized(), scale=torch.ones(12, 2, dtype=torch.float16, device="meta"))


@pytest.mark.parametrize(
    "grid",
    [
        WHOLE,
        FloatGrid(scope="tensor"),
        FloatGrid(scope="block"),
        CodebookGrid(codebook="nf4", block_size=32, double_quant=True),
    ],
    ids=lambda grid: grid.name,
)
def test_rows_that_share_parameters_stay_together(grid):
    tensor = quantized(grid)
    for call in (
        lambda: tensor.take_rows([0]),
        lambda: tensor.split_rows([12]),
        lambda: QuantTensor.stack([tensor, tensor]),
    ):
        with pytest.raises(UnsupportedGrid, match=f"{grid.name}: rows share parameters, so they"):
            call()


@pytest.mark.parametrize("index", [[12], [-1], [0, 99]])
def test_rows_that_are_not_there_are_refused(index):
    with pytest.raises(UsageError, match="of a tensor with 12 rows; pass row numbers from 0 to 11"):
        quantized().take_rows(index)


def test_taking_no_rows_is_refused():
    with pytest.raises(UsageError, match="pass at least one row number"):
        quantized().take_rows([])


@pytest.mark.parametrize("sizes", [[], [5, 6], [12, 0], [-1, 13]])
def test_sizes_that_do_not_add_up_are_refused(sizes):
    with pytest.raises(UsageError, match="for 12 rows; pass positive sizes that add up"):
        quantized().split_rows(sizes)


def test_stacking_nothing_is_refused():
    with pytest.raises(UsageError, match="stack got no tensors"):
        QuantTensor.stack([])


def test_stacking_other_grids_is_refused():
    with pytest.raises(
        UnsupportedGrid, match="cannot stack tensor 2 on grid int4_g16 .* uint4_g16"
    ):
        QuantTensor.stack([quantized(), quantized(INT4)])


def test_stacking_other_columns_is_refused():
    with pytest.raises(UnsupportedGrid, match="tensor 2 with 48 columns below 32 columns"):
        QuantTensor.stack([quantized(), quantized(columns=48)])


def test_stacking_across_devices_is_refused():
    with pytest.raises(UnsupportedGrid, match="cannot stack tensor 2 on meta below one on cpu"):
        QuantTensor.stack([quantized(), quantized().to("meta")])


# --- the grid of the input ------------------------------------------------------------------------

STATIC = ActivationGrid(scope="tensor", dynamic=False)
STATIC_UINT8 = ActivationGrid(symmetric=False, scope="tensor", dynamic=False)
TOKEN = ActivationGrid()


def with_static(scale: float = 0.25, tensor: QuantTensor | None = None) -> QuantTensor:
    tensor = quantized() if tensor is None else tensor
    return tensor.with_activation(STATIC, {"scale": torch.tensor([scale])})


def test_the_grid_of_the_input_stays_with_every_part():
    tensor = with_static()
    parts = (
        tensor.take_rows([2, 1]),
        *tensor.split_rows([4, 8]),
        QuantTensor.stack([tensor, tensor]),
        tensor.to("cpu"),
        pickle.loads(pickle.dumps(tensor)),
    )
    for part in parts:
        assert part.activation == STATIC
        assert part.activation_parameters["scale"].tolist() == [0.25]
    assert torch.equal(tensor.dequantize(), quantized().dequantize())


def test_a_dynamic_grid_of_the_input_stores_nothing():
    tensor = quantized().with_activation(TOKEN, TOKEN.fit_range(-torch.ones(32), torch.ones(32)))
    assert (tensor.activation, tensor.activation_parameters) == (TOKEN, {})
    assert tensor.with_activation(None, {}).same(quantized())


def test_same_sees_the_input_too():
    assert with_static().same(with_static())
    assert not with_static().same(quantized())
    assert not quantized().same(with_static())
    assert not with_static().same(with_static(0.5))
    assert not with_static().same(quantized().with_activation(TOKEN, {}))


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (quantized(), r"tensor 2 with input as it is below one with input int8_tensor_static"),
        (with_static(0.5), r"with input int8_tensor_static \{'scale': \[0.5\]\} below"),
        (quantized().with_activation(TOKEN, {}), r"with input int8_token below one"),
    ],
)
def test_tensors_with_other_inputs_are_not_stacked(other, text):
    with pytest.raises(UnsupportedGrid, match=text):
        QuantTensor.stack([with_static(), other])


@pytest.mark.parametrize(
    ("activation", "parameters", "text"),
    [
        (STATIC, {}, r"activation grid int8_tensor_static has parameters \['scale'\], got \[\]"),
        (None, {"scale": torch.ones(1)}, r"activation grid none has parameters \[\], got"),
        (TOKEN, {"scale": torch.ones(1)}, r"activation grid int8_token has parameters \[\], got"),
        (STATIC, {"scale": torch.ones(2)}, r"scale is \(2,\) float32, but must be \(1,\) float32"),
        (STATIC, {"scale": torch.ones(1).half()}, r"scale is \(1,\) float16, but must be"),
        (
            STATIC_UINT8,
            {"scale": torch.ones(1), "zero_point": torch.zeros(1)},
            r"zero_point is \(1,\) float32, but must be \(1,\) uint8; pass what activation",
        ),
        (STATIC, {"scale": torch.ones(1, device="meta")}, "scale is on meta, codes on cpu; move"),
    ],
)
def test_static_parameters_that_the_grid_of_the_input_does_not_have_are_refused(
    activation, parameters, text
):
    with pytest.raises(UnsupportedGrid, match=text):
        quantized().with_activation(activation, parameters)
