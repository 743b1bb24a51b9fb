"""The bytes around the tensors, read back by the gguf library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from qconv.errors import UnreadableInput, Unsupported
from qconv.plugin import TensorPlan
from qconv_gguf._container import (
    Metadata,
    Value,
    ValueType,
    array,
    boolean,
    float32,
    lay_out,
    string,
    uint32,
)


def plan(name: str, shape: tuple[int, ...], storage: str = "F32") -> TensorPlan:
    return TensorPlan(
        name=name, sources=(name,), shape=shape, action="copy", storage=storage, reason="test"
    )


def read(tmp_path: Path, metadata: Metadata, *plans: TensorPlan) -> GGUFReader:
    layout = lay_out("x.gguf", metadata, plans)
    (file,) = layout.files
    path = tmp_path / file.path
    path.write_bytes(file.header + bytes(file.nbytes - len(file.header)))
    return GGUFReader(path)


VALUES = {
    "u8": Value(ValueType.UINT8, 255),
    "i8": Value(ValueType.INT8, -128),
    "u16": Value(ValueType.UINT16, 65535),
    "i16": Value(ValueType.INT16, -32768),
    "u32": uint32(2**32 - 1),
    "i32": Value(ValueType.INT32, -(2**31)),
    "f32": float32(0.5),
    "yes": boolean(True),
    "text": string("naïve 我 🚀 \0"),
    "u64": Value(ValueType.UINT64, 2**64 - 1),
    "i64": Value(ValueType.INT64, -(2**63)),
    "f64": Value(ValueType.FLOAT64, 0.1),
    "numbers": array(ValueType.INT32, [1, -2, 3]),
    "texts": array(ValueType.STRING, ["", "a", "▁b"]),
    "truths": array(ValueType.BOOL, [True, False]),
}


def test_every_type_of_value_comes_back(tmp_path: Path) -> None:
    reader = read(tmp_path, VALUES, plan("x", (4,)))
    for key, value in VALUES.items():
        field = reader.fields[key]
        assert field.contents() == value.value
        assert [int(kind) for kind in field.types] == [
            value.type,
            *([] if value.element_type is None else [value.element_type]),
        ]


def test_tensors_come_back_where_they_were_placed(tmp_path: Path) -> None:
    plans = [
        plan("vector", (3,)),
        plan("matrix", (5, 64), "Q8_0"),
        plan("cube", (2, 3, 256), "Q4_K"),
        plan("half", (7, 9), "F16"),
    ]
    layout = lay_out("x.gguf", {"a": uint32(1)}, plans)
    reader = read(tmp_path, {"a": uint32(1)}, *plans)
    assert [entry.name for entry in reader.tensors] == [entry.name for entry in plans]
    for entry, expected in zip(reader.tensors, plans, strict=True):
        (place,) = layout.places[entry.name]
        assert tuple(int(n) for n in reversed(entry.shape)) == expected.shape
        assert entry.tensor_type.name == expected.storage
        assert int(entry.data_offset) == place.offset
        assert int(entry.n_bytes) == place.nbytes
        assert place.offset % 32 == 0
        assert place.row_nbytes is not None
        assert place.nbytes == place.row_nbytes * int(np.prod(expected.shape[:-1]))


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6), power=st.integers(3, 8))
def test_places_follow_one_another_padded(sizes: list[int], power: int) -> None:
    alignment = 2**power
    plans = [plan(f"t{n}", (size,)) for n, size in enumerate(sizes)]
    layout = lay_out("x.gguf", {"general.alignment": uint32(alignment)}, plans)
    (file,) = layout.files
    end = -(-len(file.header) // alignment) * alignment
    for entry, size in zip(plans, sizes, strict=True):
        (place,) = layout.places[entry.name]
        assert (place.offset, place.nbytes) == (end, 4 * size)
        end += -(-4 * size // alignment) * alignment
    assert file.nbytes == end


def test_bytes_of_a_small_header() -> None:
    layout = lay_out("x.gguf", {"k": uint32(7)}, [plan("t", (2, 3))])
    assert layout.files[0].header == (
        b"GGUF\x03\0\0\0" + b"\x01" + bytes(7) + b"\x01" + bytes(7)
        + b"\x01" + bytes(7) + b"k" + b"\x04\0\0\0" + b"\x07\0\0\0"
        + b"\x01" + bytes(7) + b"t" + b"\x02\0\0\0" + b"\x03" + bytes(7) + b"\x02" + bytes(7)
        + bytes(4) + bytes(8)
    )  # fmt: skip


@pytest.mark.parametrize("alignment", [0, 24, "32"])
def test_alignment_must_be_a_power_of_two(alignment: object) -> None:
    with pytest.raises(UnreadableInput, match=r"general\.alignment is .* power of two"):
        lay_out("x.gguf", {"general.alignment": Value(ValueType.UINT32, alignment)}, [])


@pytest.mark.parametrize(
    "value",
    [
        uint32(-1),
        string(5),  # type: ignore[arg-type]
        Value(13, 0),
        Value(ValueType.ARRAY, [1]),
        Value(ValueType.ARRAY, [[1]], ValueType.ARRAY),
        array(ValueType.INT8, [200]),
    ],
)
def test_a_value_that_does_not_fit_its_type_is_named(value: Value) -> None:
    with pytest.raises(UnreadableInput, match=r"metadata 'odd\.key': the value does not fit"):
        lay_out("x.gguf", {"odd.key": value}, [])


@pytest.mark.parametrize(("name", "shape"), [("x" * 64, (1,)), ("x", (1, 1, 1, 1, 1))])
def test_what_ggml_cannot_hold_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(Unsupported, match=r"does not fit GGUF, which holds 4 dimensions"):
        lay_out("x.gguf", {}, [plan(name, shape)])
