"""Facts about files nobody foresaw: they open and read whole, or are refused in our words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoint.written import CONFIG, gguf_bytes, hf_directory, quantized_gguf, safetensors_bytes
from qconv.checkpoint import open_checkpoint
from qconv.errors import UnreadableInput

#: Types that the gguf library knows the size of, but cannot decode.
UNDECODABLE = {"Q8_1", "Q8_K"}

patiently = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, float, int]]:
    """Edits to apply to a file: what, where (as a share of the header or file), and a byte."""
    edit = st.tuples(
        st.sampled_from(["flip", "insert", "delete", "truncate", "huge"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    )
    return draw(st.lists(edit, min_size=1, max_size=4))


def changed(content: bytes, edits: list[tuple[str, float, int]], focus: int) -> bytes:
    """Edits fall into the first ``focus`` bytes, where the header is; truncation anywhere."""
    data = bytearray(content)
    for kind, share, byte in edits:
        at = int(share * min(focus, len(data)))
        if kind == "flip" and data:
            data[at] ^= 1 << byte % 8
        elif kind == "insert":
            data[at:at] = bytes([byte])
        elif kind == "delete":
            del data[at : at + byte % 16]
        elif kind == "huge":
            data[at : at + 8] = b"\xff" * (byte % 9)
        elif kind == "truncate":
            del data[int(share * len(data)) :]
    return bytes(data)


def read_or_refused(path: Path) -> bool:
    """True when it opened; every tensor must then be readable."""
    try:
        checkpoint = open_checkpoint(path)
    except UnreadableInput:
        return False
    with checkpoint:
        for name, info in checkpoint.model.tensors.items():
            rows = int(torch.Size(info.shape[:-1]).numel())
            assert checkpoint.read_raw(name, 0, rows).numel() == info.nbytes
            if info.dtype in UNDECODABLE:
                continue
            assert checkpoint.read_rows(name, 0, rows).numel() == info.numel
    return True


@pytest.fixture(scope="module")
def sound_safetensors(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (hf_directory(tmp_path_factory.mktemp("st")) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def sound_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    quantized_gguf(path)
    return path.read_bytes()


@patiently
@given(edits=changes())
def test_a_changed_safetensors_file_opens_or_is_refused(
    tmp_path: Path, sound_safetensors: bytes, edits: list[tuple[str, float, int]]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    focus = 8 + int.from_bytes(sound_safetensors[:8], "little")
    (tmp_path / "x.safetensors").write_bytes(changed(sound_safetensors, edits, focus))
    read_or_refused(tmp_path / "x.safetensors")


@patiently
@given(edits=changes())
def test_a_changed_gguf_file_opens_or_is_refused(
    tmp_path: Path, sound_gguf: bytes, edits: list[tuple[str, float, int]]
) -> None:
    (tmp_path / "x.gguf").write_bytes(changed(sound_gguf, edits, focus=700))
    read_or_refused(tmp_path / "x.gguf")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "BOOL", "F4", "x"]) | JSON,
        "shape": st.lists(st.integers(0, 8), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2) | JSON,
    }
)


@patiently
@given(
    header=st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=3) | JSON,
    data=st.binary(max_size=64),
)
def test_any_safetensors_header_opens_or_is_refused(
    tmp_path: Path, header: object, data: bytes
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(header, data))
    read_or_refused(tmp_path / "x.safetensors")


@patiently
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".gguf", ".safetensors"]))
def test_any_bytes_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / f"x{suffix}").write_bytes(content)
    assert not read_or_refused(tmp_path / f"x{suffix}")


@patiently
@given(body=st.binary(max_size=200), pairs=st.integers(0, 3), tensors=st.integers(0, 3))
def test_any_gguf_body_opens_or_is_refused(
    tmp_path: Path, body: bytes, pairs: int, tensors: int
) -> None:
    content = gguf_bytes([body], n_pairs=pairs, n_tensors=tensors)
    (tmp_path / "x.gguf").write_bytes(content)
    read_or_refused(tmp_path / "x.gguf")


def test_the_unchanged_files_open(
    tmp_path: Path, sound_safetensors: bytes, sound_gguf: bytes
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "x.safetensors").write_bytes(sound_safetensors)
    (tmp_path / "x.gguf").write_bytes(sound_gguf)
    assert read_or_refused(tmp_path / "x.safetensors")
    assert read_or_refused(tmp_path / "x.gguf")
