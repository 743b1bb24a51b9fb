"""Packed words against references that place one value after the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qconv.errors import UnsupportedGrid
from qconv.grids import FloatGrid, UniformGrid
from qconv.tensors import QuantTensor
from qconv_safetensors._layouts import (
    _awq,
    _float_quantized,
    _gptq,
    _int_quantized,
    _pack_quantized,
)
from qconv_safetensors._layouts._bits import pack_rows, packed_words

SEEDS = st.integers(0, 2**31 - 1)
NAME = "model.layers.0.mlp.up_proj.weight"


def dense(values: list[int], bits: int) -> list[int]:
    """32-bit words, signed, of codes laid bit by bit."""
    words = [0] * packed_words(len(values), bits)
    for index, value in enumerate(values):
        for bit in range(bits):
            place = index * bits + bit
            words[place // 32] |= (value >> bit & 1) << place % 32
    return [word - (1 << 32) if word >> 31 else word for word in words]


def integers(
    rows: int, columns: int, *, bits: int, symmetric: bool, size: int | str = 32, seed: int = 0
) -> QuantTensor:
    """Random codes, scales and zero-points; no zero-point is 0."""
    generator = torch.Generator().manual_seed(seed)
    grid = UniformGrid(bits=bits, symmetric=symmetric, group_size=size)
    shapes = grid.layout((rows, columns))
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator)
    parameters = {"scale": torch.rand(shapes["scale"][0], generator=generator).half() - 0.5}
    if symmetric:
        codes = (codes - (1 << (bits - 1))).to(torch.int8)
    else:
        zero = torch.randint(1, 1 << bits, shapes["zero_point"][0], generator=generator)
        parameters["zero_point"] = zero.to(torch.uint8)
    return QuantTensor(
        grid=grid, codes=codes if symmetric else codes.to(torch.uint8), parameters=parameters
    )


def unsigned(value: QuantTensor) -> torch.Tensor:
    grid = value.grid
    assert isinstance(grid, UniformGrid)
    return value.codes.int() + (1 << (grid.bits - 1) if grid.symmetric else 0)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), rows=st.integers(1, 5), columns=st.integers(1, 70), seed=SEEDS)
def test_rows_are_packed_bit_by_bit(bits: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator)
    packed = pack_rows(codes.to(torch.uint8), bits)
    assert packed.dtype == torch.int32
    assert packed.tolist() == [dense(row, bits) for row in codes.tolist()]


def test_many_rows_are_packed_in_several_slabs() -> None:
    codes = torch.randint(0, 16, (3000, 256), dtype=torch.uint8)
    whole = pack_rows(codes, 4)
    assert torch.equal(whole[2990:], pack_rows(codes[2990:], 4))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_packs_codes_along_rows(bits: int, symmetric: bool) -> None:
    value = integers(24, 96, bits=bits, symmetric=symmetric)
    packed, scale, *zero = _pack_quantized.pack(NAME, value, "bfloat16")
    assert packed.tolist() == [dense(row, bits) for row in unsigned(value).tolist()]
    assert torch.equal(scale, value.parameters["scale"])
    assert len(zero) == (0 if symmetric else 1)


def test_compressed_tensors_packs_zero_points_along_the_outputs() -> None:
    value = integers(20, 64, bits=4, symmetric=False)
    zero = _pack_quantized.pack(NAME, value, "bfloat16")[2]
    columns = [dense(column, 4) for column in value.parameters["zero_point"].t().tolist()]
    assert zero.t().tolist() == columns
    assert zero.shape == (3, 2)  # 20 rows of 4 bits fill two and a half words


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_packs_codes_down_the_columns(bits: int) -> None:
    value = integers(32, 64, bits=bits, symmetric=True)
    qweight, _, scales, g_idx = _gptq.pack_v1(NAME, value, "bfloat16")
    assert qweight.t().tolist() == [dense(row, bits) for row in unsigned(value).tolist()]
    assert torch.equal(scales, value.parameters["scale"].t())
    assert g_idx.tolist() == [0] * 32 + [1] * 32


def test_gptq_packs_three_bits_across_words_as_its_kernels_unpack_them() -> None:
    """The shifts that AutoGPTQ's 3-bit kernels spell out: values 10 and 21 straddle."""
    value = integers(32, 32, bits=3, symmetric=True)
    words = _gptq.pack_v1(NAME, value, "bfloat16")[0].to(torch.int64)[:, 0] & 0xFFFFFFFF
    codes = unsigned(value)[0].tolist()
    first, second, third = words.tolist()
    assert [first >> 3 * k & 7 for k in range(10)] == codes[:10]
    assert first >> 30 | (second & 1) << 2 == codes[10]
    assert [second >> 1 + 3 * k & 7 for k in range(10)] == codes[11:21]
    assert second >> 31 | (third & 3) << 1 == codes[21]
    assert [third >> 2 + 3 * k & 7 for k in range(10)] == codes[22:]


@pytest.mark.parametrize(("pack", "stored"), [(_gptq.pack_v1, 7), (_gptq.pack_v2, 8)])
def test_symmetric_gptq_states_the_middle_as_zero_point(pack, stored: int) -> None:
    qzeros = pack(NAME, integers(16, 32, bits=4, symmetric=True), "bfloat16")[1]
    assert qzeros.tolist() == [dense([stored] * 16, 4)]


def test_gptq_v2_states_zero_points_as_they_are_and_v1_less_one() -> None:
    value = integers(16, 64, bits=4, symmetric=False)
    zero = value.parameters["zero_point"].t().int()
    assert _gptq.pack_v2(NAME, value, "")[1].tolist() == [dense(row, 4) for row in zero.tolist()]
    assert _gptq.pack_v1(NAME, value, "")[1].tolist() == [
        dense(row, 4) for row in (zero - 1).tolist()
    ]


def test_gptq_v1_refuses_a_zero_point_of_zero() -> None:
    value = integers(16, 64, bits=4, symmetric=False)
    value.parameters["zero_point"][3, 1] = 0
    value.codes[3, 40] = 15
    with pytest.raises(
        UnsupportedGrid, match=r"1 groups have zero-point 0 and use all codes, but .*gptq_v2"
    ):
        _gptq.pack_v1(NAME, value, "bfloat16")
    assert len(_gptq.pack_v2(NAME, value, "bfloat16")) == 4


def test_gptq_v1_moves_a_group_that_does_not_use_all_codes() -> None:
    value = integers(16, 64, bits=4, symmetric=False)
    value.parameters["zero_point"][3, 1] = 0
    value.codes[3, 32:] = torch.arange(32, dtype=torch.uint8) % 15
    before = value.codes.clone()
    qweight, qzeros, *_ = _gptq.pack_v1(NAME, value, "")
    codes, zero = before.int(), value.parameters["zero_point"].int()
    assert torch.equal(value.codes, before)
    codes[3, 32:] += 1
    zero[3, 1] = 1
    assert qweight.t().tolist() == [dense(row, 4) for row in codes.tolist()]
    assert qzeros.tolist() == [dense(row, 4) for row in (zero.t() - 1).tolist()]


def test_awq_packs_eight_outputs_to_a_word_in_its_own_order() -> None:
    value = integers(1040, 32, bits=4, symmetric=False)  # more rows than one slab
    qweight, qzeros, scales = _awq.pack(NAME, value, "bfloat16")
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    for packed, codes in ((qweight, value.codes), (qzeros, value.parameters["zero_point"])):
        for row, words in zip(codes.t().tolist(), packed.tolist(), strict=True):
            shuffled = [row[start + at] for start in range(0, len(row), 8) for at in order]
            assert words == dense(shuffled, 4)
    assert torch.equal(scales, value.parameters["scale"].t())


def test_int_quantized_stores_codes_and_scales_as_they_are() -> None:
    value = integers(8, 16, bits=8, symmetric=True, size="channel")
    weight, scale = _int_quantized.pack(NAME, value, "bfloat16")
    assert torch.equal(weight, value.codes)
    assert torch.equal(scale, value.parameters["scale"])


def test_inputs_are_not_modified() -> None:
    value = integers(16, 64, bits=4, symmetric=False)
    before = {"codes": value.codes.clone()} | {k: v.clone() for k, v in value.parameters.items()}
    for pack in (_pack_quantized.pack, _gptq.pack_v1, _gptq.pack_v2, _awq.pack):
        pack(NAME, value, "bfloat16")
    after = {"codes": value.codes, **value.parameters}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_packed_parts_have_the_planned_shapes_and_sizes() -> None:
    for module, pack, bits, symmetric in (
        (_pack_quantized, _pack_quantized.pack, 5, False),
        (_gptq, _gptq.pack_v2, 3, True),
        (_awq, _awq.pack, 4, False),
    ):
        value = integers(32, 96, bits=bits, symmetric=symmetric)
        parts = module.parts(NAME, (32, 96), value.grid, None, "bfloat16")
        packed = pack(NAME, value, "bfloat16")
        planned = [part for part in parts if part.constant is None]
        assert [tuple(each.shape) for each in packed] == [part.shape for part in planned]
        assert [each.nbytes for each in packed] == [part.nbytes for part in planned]
        assert all(each.is_contiguous() for each in packed)


def test_compressed_tensors_own_packer_agrees() -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    for bits in range(2, 9):
        codes = integers(12, 100, bits=bits, symmetric=True, size="channel").codes
        mine = pack_rows(codes.view(torch.uint8) + (1 << (bits - 1)), bits)
        assert torch.equal(mine, helpers.pack_to_int32(codes, bits))


@pytest.mark.parametrize(
    ("module", "grid", "words"),
    [
        (_pack_quantized, FloatGrid(scope="channel"), "integers with scales per group or channel"),
        (_float_quantized, UniformGrid(bits=8, symmetric=True, group_size=8), "holds FP8, not"),
        (_int_quantized, UniformGrid(bits=8, symmetric=True, group_size=32), "activations=none"),
        (
            _gptq,
            UniformGrid(bits=4, symmetric=True, group_size=32, scale_dtype="bfloat16"),
            "GPTQ stores scales in float16, not bfloat16",
        ),
        (_gptq, UniformGrid(bits=3, symmetric=True, group_size=8), "40 columns of 3 bits"),
        (_gptq, UniformGrid(bits=4, symmetric=True, group_size=8), "12 rows of 4 bits"),
        (_awq, UniformGrid(bits=4, symmetric=True, group_size=8), "4-bit codes with zero-points"),
        (_awq, UniformGrid(bits=4, symmetric=False, group_size=8), "12 rows of 4 bits.*of 8 do"),
    ],
)
def test_a_layout_refuses_what_it_cannot_hold(module, grid, words: str) -> None:
    with pytest.raises(UnsupportedGrid, match=f"tensor '{NAME}': .*{words}"):
        module.parts(NAME, (12, 40), grid, None, "bfloat16")
