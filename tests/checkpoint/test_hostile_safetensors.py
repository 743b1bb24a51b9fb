"""Facts about hostile and damaged safetensors files: each is refused in words that help."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import pytest
import torch

from checkpoint.written import beside_config, hf_directory, safetensors_bytes
from qconv.checkpoint import open_checkpoint, parse_object
from qconv.checkpoint._mapped import MappedFile
from qconv.errors import NotEnoughResources, UnreadableInput


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DATA = bytes(8)
HEADERS = {
    "not JSON": (b"{nope", "header: not valid JSON"),
    "UTF-8": (b'{"\xff": 1}', "header: byte 2 is not UTF-8"),
    "depth": (b'{"a":' + b"[" * 200_000, "nested too deep"),
    "a list": (b"[]", "holds a JSON list, but must hold an object"),
    "a huge number": (b'{"a": ' + b"9" * 5000 + b"}", "integer of 5000 digits"),
    "twice": (b'{"w": {}, "w": {}}', "key 'w' appears twice"),
    "metadata": ({"__metadata__": {"a": 1}}, "must map strings to strings"),
    "metadata list": ({"__metadata__": []}, "must map strings to strings"),
    "no entry": ({"w": 3}, "tensor 'w': must have dtype, shape and data_offsets, not 3"),
    "missing key": ({"w": {"dtype": "F32", "shape": []}}, "must have dtype, shape and data_offs"),
    "dtype": ({"w": entry(dtype="F33")}, "tensor 'w': dtype 'F33' is not one of BOOL"),
    "dtype list": ({"w": entry(dtype=["F32"])}, "is not one of BOOL"),
    "shape": ({"w": entry(shape="2")}, "shape must be a list, not '2'"),
    "float shape": ({"w": entry(shape=[2.0])}, "must be whole numbers from 0 to"),
    "negative shape": ({"w": entry(shape=[-2])}, "must be whole numbers from 0 to"),
    "boolean shape": ({"w": entry(shape=[True, 2])}, "must be whole numbers from 0 to"),
    "huge shape": ({"w": entry(shape=[2**63])}, "must be whole numbers from 0 to"),
    "overflow": ({"w": entry(shape=[2**32, 2**32])}, "holds 2.63 values or more"),
    "empty overflow": ({"w": entry(shape=[2**62, 4, 0])}, "holds 2.63 values or more"),
    "dimensions": ({"w": entry(shape=[1] * 9)}, "shape may have at most 8 numbers"),
    "size": ({"w": entry(shape=[3])}, "shape .3,. of F32 does not fill its 8 bytes"),
    "boolean offset": ({"w": entry(offsets=[False, 8])}, "data_offsets must be whole numbers"),
    "negative offset": ({"w": entry(offsets=[-8, 0])}, "data_offsets must be whole numbers"),
    "one offset": ({"w": entry(offsets=[8])}, "must be a beginning and an end"),
    "swapped offsets": ({"w": entry(offsets=[8, 0])}, "must be a beginning and an end"),
    "beyond": ({"w": entry(shape=[4], offsets=[0, 16])}, "go beyond the 8 bytes of data"),
    "hole": ({"w": entry(shape=[1], offsets=[4, 8])}, "begins at byte 4 .* leaves a hole"),
    "tail": ({"w": entry(shape=[1], offsets=[0, 4])}, "4 bytes after the last tensor"),
    "overlap": (
        {"v": entry(), "w": entry(shape=[1], offsets=[4, 8])},
        "tensor 'w': begins at byte 4 .* overlaps",
    ),
    "nameless": ({"": entry()}, "tensor name '' must be printable"),
    "control": ({"\x1b[2J": entry()}, r"tensor name '\\x1b\[2J' must be printable"),
    "surrogate": ({"\ud800": entry()}, r"tensor name '\\ud800' must be printable"),
    "long name": ({"w\n" * 100_000: entry()}, r"tensor name '(w\\n)+w?\\?\.\.\. must"),
}


@pytest.mark.parametrize(("header", "match"), HEADERS.values(), ids=HEADERS.keys())
def test_an_unsound_header_is_refused(tmp_path: Path, header: object, match: str) -> None:
    path = beside_config(tmp_path, safetensors_bytes(header, DATA))
    with pytest.raises(UnreadableInput, match=match) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3
    assert len(str(caught.value)) < 800


FILES = {
    "empty": (b"", "the file is empty"),
    "short": (b"1234", "4 bytes are too few"),
    "header beyond": (struct.pack("<Q", 100) + b"{}", "header length 100 goes beyond"),
    "header over cap": (struct.pack("<Q", 2**63), "over the cap of 100000000 bytes"),
    "no tensors": (safetensors_bytes({}), "holds no tensors"),
}


@pytest.mark.parametrize(("content", "match"), FILES.values(), ids=FILES.keys())
def test_an_unsound_file_is_refused(tmp_path: Path, content: bytes, match: str) -> None:
    path = beside_config(tmp_path, content)
    with pytest.raises(UnreadableInput, match=match):
        open_checkpoint(path)


def test_a_truncated_download_is_refused(tmp_path: Path) -> None:
    path = hf_directory(tmp_path) / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(UnreadableInput, match="the download may be incomplete"):
        open_checkpoint(path)


def test_a_file_that_shrinks_while_open_is_refused_not_fatal(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path, {"w": torch.ones(1024, 1024)})
    with open_checkpoint(directory) as checkpoint:
        os.truncate(directory / "model.safetensors", 4096)
        with pytest.raises(UnreadableInput, match="changed from .* to 4096 bytes while being read"):
            checkpoint.read_rows("w", 1000, 1001)


def test_a_file_that_is_overwritten_while_open_is_refused(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path, {"w": torch.ones(1024, 1024)})
    path = directory / "model.safetensors"
    with open_checkpoint(directory) as checkpoint:
        checkpoint.read_rows("w", 0, 1)
        status = path.stat()
        with path.open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\0\0\0\0")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # clocks may tick slowly
        with pytest.raises(UnreadableInput, match="changed in place while being read"):
            checkpoint.read_rows("w", 1, 2)


def test_a_failed_opening_leaves_no_file_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted in /proc")
    path = beside_config(tmp_path, safetensors_bytes({"w": entry(dtype="?")}, DATA))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(UnreadableInput):
            open_checkpoint(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_row_that_memory_cannot_hold_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_args: object, **_kwargs: object) -> torch.Tensor:
        raise RuntimeError("can't allocate memory")

    with open_checkpoint(hf_directory(tmp_path)) as checkpoint:
        monkeypatch.setattr(torch, "empty", no_memory)
        with pytest.raises(NotEnoughResources, match="32 bytes of one tensor do not fit in memory"):
            checkpoint.read_rows("a.weight", 0, 1)


def test_json_over_the_cap_is_not_parsed() -> None:
    with pytest.raises(UnreadableInput, match="at most 100000000 are read"):
        parse_object(b" " * 100_000_001, "x.json")


def test_infinity_in_a_config_is_fine() -> None:
    assert parse_object(b'{"limit": [0.0, Infinity]}', "x.json") == {"limit": [0.0, float("inf")]}


def test_a_read_past_the_end_is_refused_whatever_the_header_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(100))
    file = MappedFile(tmp_path / "x")
    assert file.copy(90, 10).tolist() == [0] * 10
    for offset, nbytes in [(90, 11), (-1, 4), (4, -1), (2**70, 1)]:
        with pytest.raises(UnreadableInput, match="are not within its 100 bytes"):
            file.copy(offset, nbytes)
    file.close()


def test_a_type_this_torch_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = {"w": entry(dtype="F8_E8M0", shape=[8])}
    monkeypatch.delattr(torch, "float8_e8m0fnu", raising=False)
    with open_checkpoint(beside_config(tmp_path, safetensors_bytes(header, DATA))) as checkpoint:
        with pytest.raises(UnreadableInput, match="torch .* cannot decode type F8_E8M0"):
            checkpoint.read_rows("w", 0, 1)
        assert checkpoint.read_raw("w", 0, 1).shape == (1, 8)


def test_a_file_that_cannot_be_mapped_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(19, "No such device")

    path = hf_directory(tmp_path)
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(UnreadableInput, match="cannot be mapped into memory: .*No such device"):
        open_checkpoint(path)


def test_a_file_that_vanishes_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match="cannot be opened: .*No such file"):
        MappedFile(tmp_path / "gone.safetensors")


def test_a_pipe_that_takes_the_place_of_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(DATA)
    os.mkfifo(tmp_path / "pipe")
    as_file = (tmp_path / "file").stat()
    monkeypatch.setattr(Path, "stat", lambda *_args, **_kwargs: as_file)
    with pytest.raises(UnreadableInput, match="pipe: not a regular file"):
        MappedFile(tmp_path / "pipe")


def test_a_disk_that_fails_is_an_error_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    directory = hf_directory(tmp_path, {"w": torch.ones(4, 4)})
    with open_checkpoint(directory) as checkpoint:
        monkeypatch.setattr(os, "preadv", fail, raising=False)
        with pytest.raises(UnreadableInput, match="cannot be read: Input/output error; check the"):
            checkpoint.read_rows("w", 0, 1)
