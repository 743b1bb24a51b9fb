"""Packing GGUF blocks: the gguf library reads what was meant, whatever the codes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_oracle import TYPES
from qconv.errors import UnsupportedGrid
from qconv.grids import grid_from_spec
from qconv_gguf import _packing
from qconv_gguf._packing import pack

BITS = {"q2_k": 4, "q3_k": 6, "q4_k": 6, "q5_k": 6, "q6_k": 8}


def _grid(name: str):
    family = "superblock" if name.endswith("_k") else "block"
    return grid_from_spec({"family": family, "type": name, "search": "ggml"})


def _random(name: str, rows: int, blocks: int, seed: int):
    """Any codes and parameters that the type can store."""
    draw = np.random.default_rng(seed)
    grid = _grid(name)
    made = {}
    for key, (shape, dtype) in grid.layout((rows, blocks * TYPES[name][1])).items():
        if dtype == "float16":
            values = draw.integers(0, 0x7C00, shape, np.uint16).view(np.float16)
        elif key == "codes":
            bits = 8 if name == "q8_0" else int(name[1])
            values = draw.integers(0, 1 << bits, shape, np.uint8).view(dtype)
        elif dtype == "int8":
            half = 1 << (BITS[name] - 1)
            values = draw.integers(-half, half, shape, np.int8)
        else:
            values = draw.integers(0, 1 << BITS[name], shape, np.uint8)
        made[key] = torch.from_numpy(values)
    return made.pop("codes"), made


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 4), blocks=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_the_gguf_library_decodes_what_the_grid_decodes(name, rows, blocks, seed):
    codes, parameters = _random(name, rows, blocks, seed)
    data = pack(name, codes, parameters).numpy()
    assert data.shape == (rows, blocks * TYPES[name][2])
    assert data.dtype == np.uint8
    expected = dequantize(data, getattr(gguf.GGMLQuantizationType, name.upper()))
    values = _grid(name).decode(codes, parameters).numpy()
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", TYPES)
def test_compiled_loops_do_what_they_say_in_python(name, monkeypatch):
    codes, parameters = _random(name, 2, 2, 0)
    expected = pack(name, codes, parameters)
    monkeypatch.setattr(_packing, "_compiled", lambda function: function)
    monkeypatch.setattr(_packing, "_packer", _packing._packer.__wrapped__)
    with np.errstate(over="ignore"):  # words wrap around
        assert torch.equal(pack(name, codes, parameters), expected)


def test_a_slice_packs_like_its_copy():
    codes, parameters = _random("q5_0", 6, 4, 1)
    rows = slice(1, 6, 2)
    part = pack("q5_0", codes[rows], {key: value[rows] for key, value in parameters.items()})
    assert torch.equal(part, pack("q5_0", codes, parameters)[rows])
    odd = torch.empty(codes.numel() + 3, dtype=torch.uint8)[3:].view(codes.shape)
    odd.copy_(codes)
    assert torch.equal(pack("q5_0", odd, parameters), pack("q5_0", codes, parameters))


def test_packing_modifies_nothing():
    codes, parameters = _random("q3_k", 2, 2, 2)
    kept = codes.clone(), {key: value.clone() for key, value in parameters.items()}
    pack("q3_k", codes, parameters)
    assert torch.equal(codes, kept[0])
    assert all(torch.equal(parameters[key], kept[1][key]) for key in parameters)


def test_unknown_types_are_refused():
    with pytest.raises(UnsupportedGrid, match="ggml type 'iq9' has no packing; choose one of q4_0"):
        pack("iq9", torch.zeros(1, 32, dtype=torch.uint8), {})
