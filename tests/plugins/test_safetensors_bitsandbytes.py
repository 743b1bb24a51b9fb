"""NF4 and FP4 are packed as bitsandbytes serializes them, and read back the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors_encoders import decoded

from qconv.errors import UnsupportedGrid
from qconv.grids import ActivationGrid, CodebookGrid, UniformGrid
from qconv.tensors import QuantTensor
from qconv_safetensors import _bitsandbytes as packer

X = "model.layers.0.mlp.up_proj"
DTYPES = {"U8": torch.uint8, "F32": torch.float32}


def quantized(grid: CodebookGrid, rows: int = 48, columns: int = 192) -> QuantTensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05
    codes, parameters = grid.quantize(weight)
    return QuantTensor(grid=grid, codes=codes, parameters=parameters)


def stored(value: QuantTensor, dtype: str = "bfloat16") -> dict[str, torch.Tensor]:
    """What a file would hold, checked against what was planned."""
    packed = iter(packer.pack(f"{X}.weight", value, dtype))
    tensors = {}
    for part in packer.parts(f"{X}.weight", value.shape, value.grid, None, dtype):
        if part.constant is not None:
            data = torch.frombuffer(bytearray(part.constant), dtype=DTYPES[part.dtype])
            tensor = data.view(part.shape)
        else:
            tensor = next(packed)
        assert tuple(tensor.shape) == part.shape
        assert tensor.dtype == DTYPES[part.dtype]
        assert tensor.is_contiguous()
        tensors[f"{X}.{part.suffix}"] = tensor
    assert next(packed, None) is None
    return tensors


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("codebook", ["nf4", "fp4"])
@pytest.mark.parametrize("block_size", [32, 64])
def test_what_is_packed_is_read_back(codebook: str, double_quant: bool, block_size: int) -> None:
    grid = CodebookGrid(codebook=codebook, block_size=block_size, double_quant=double_quant)
    value = quantized(grid)
    found = decoded(stored(value), {"quant_method": "bitsandbytes"})[f"{X}.weight"]
    assert torch.equal(found.codes, value.codes)
    assert found.parameters.keys() == value.parameters.keys()
    for name, parameter in value.parameters.items():
        assert torch.equal(found.parameters[name], parameter)


def test_the_first_code_is_in_the_high_half() -> None:
    value = quantized(CodebookGrid(codebook="nf4"))
    first = int(stored(value)[f"{X}.weight"][0, 0])
    assert first == int(value.codes[0, 0]) * 16 + int(value.codes[0, 1])


def test_the_state_is_json() -> None:
    value = quantized(CodebookGrid(codebook="fp4", double_quant=True))
    tensors = stored(value, "float16")
    state = json.loads(bytes(tensors[f"{X}.weight.quant_state.bitsandbytes__fp4"].tolist()))
    assert state == {
        "quant_type": "fp4",
        "blocksize": 64,
        "dtype": "float16",
        "shape": [48, 192],
        "nested_blocksize": 256,
        "nested_dtype": "float32",
        "nested_offset": float(value.parameters["nested_offset"]),
    }


@pytest.mark.parametrize("offset", [0.0, 1.0, -1.1754943508222875e-38, 3.4028234663852886e38])
def test_the_state_is_as_long_for_any_offset(offset: float) -> None:
    value = quantized(CodebookGrid(codebook="nf4", double_quant=True))
    parameters = {**value.parameters, "nested_offset": torch.tensor([offset])}
    tensors = stored(replace(value, parameters=parameters))
    state = json.loads(bytes(tensors[f"{X}.weight.quant_state.bitsandbytes__nf4"].tolist()))
    assert state["nested_offset"] == offset


def test_slabs_of_rows_are_parts_of_the_whole() -> None:
    value = quantized(CodebookGrid(codebook="nf4"))
    parts = packer.parts("w", value.shape, value.grid, None, "bfloat16")
    assert all(part.by_rows for part in parts if part.constant is None)
    whole = packer.pack("w", value, "bfloat16")
    slabs = [packer.pack("w", slab, "bfloat16") for slab in value.split_rows([10, 38])]
    for number, tensor in enumerate(whole):
        assert torch.equal(torch.cat([slab[number] for slab in slabs]), tensor)


def test_nested_scales_are_packed_whole() -> None:
    grid = CodebookGrid(codebook="nf4", double_quant=True)
    assert not any(part.by_rows for part in packer.parts("w", (48, 192), grid, None, "bfloat16"))


def test_another_grid_is_refused() -> None:
    grid = UniformGrid(bits=4, symmetric=True, group_size=64)
    with pytest.raises(UnsupportedGrid, match=r"holds NF4 and FP4, not int4_g64; plan it on one"):
        packer.parts("w", (48, 192), grid, None, "bfloat16")


def test_quantized_inputs_are_refused() -> None:
    with pytest.raises(
        UnsupportedGrid, match=r"'w': bitsandbytes computes in bfloat16, but inputs"
    ):
        packer.parts("w", (8, 64), CodebookGrid(codebook="nf4"), ActivationGrid(), "bfloat16")


def test_rows_of_broken_blocks_are_refused() -> None:
    with pytest.raises(UnsupportedGrid, match=r"'w': 96 columns are not a multiple of nf4_b64"):
        packer.parts("w", (8, 96), CodebookGrid(codebook="nf4"), None, "bfloat16")
