"""Facts about hostile and damaged GGUF files: each is refused in words that help."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import gguf
import pytest

from checkpoint.written import gguf_bytes, listed, pair, quantized_gguf, text
from qconv.checkpoint import open_checkpoint
from qconv.errors import UnreadableInput

U32, U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
STRING, ARRAY, BOOL = 8, 9, 7


def aligned(value: bytes, kind: int = 4) -> list[bytes]:
    return [pair("general.alignment", kind, value)]


def array(element: int, count: int, payload: bytes = b"") -> list[bytes]:
    return [pair("k", ARRAY, U32(element) + U64(count) + payload)]


FILES = {
    "magic": (b"GGML" + bytes(40), "begins with b'GGML', but a GGUF file begins with b'GGUF'"),
    "short": (b"GG", "magic number .4 bytes. goes beyond the file's 2 bytes"),
    "no counts": (b"GGUF" + U32(3), "number of tensors .8 bytes. goes beyond"),
    "version 1": (gguf_bytes(version=1), "GGUF version 1 is not supported, versions 2 and 3 are"),
    "version 4": (gguf_bytes(version=4), "GGUF version 4 is not supported"),
    "big-endian": (gguf_bytes(version=3 << 24), "a big-endian GGUF file; convert it"),
    "tensor count": (gguf_bytes(n_tensors=2**60), "number of tensors is 1152921504606846976, more"),
    "key count": (gguf_bytes(n_pairs=2**60), "number of metadata keys is 11529215046"),
    "no tensors": (gguf_bytes(), "holds no tensors"),
    "key length": (gguf_bytes([U64(2**63) + bytes(12)]), "metadata key .* goes beyond the file's"),
    "key UTF-8": (gguf_bytes([pair(b"\xff", 4, U32(1))]), "metadata key is not UTF-8"),
    "key empty": (gguf_bytes([pair("", 4, U32(1))]), "key '' must be printable text"),
    "key control": (gguf_bytes([pair("\x1b", 4, U32(1))]), r"key '\\x1b' must be printable"),
    "key twice": (gguf_bytes([pair("k", 4, U32(1))] * 2), "key 'k' appears twice"),
    "value type": (gguf_bytes([pair("k", 13, U32(1))]), "key 'k': type 13 is unknown"),
    "value length": (gguf_bytes([pair("k", STRING, U64(999))]), "key 'k': string of 999 bytes"),
    "value UTF-8": (gguf_bytes([pair("k", STRING, text(b"\xff"))]), "string 0 is not UTF-8"),
    "bool": (gguf_bytes([pair("k", BOOL, b"\2")]), "a bool that is neither 0 nor 1"),
    "element type": (gguf_bytes(array(99, 1, bytes(8))), "key 'k': type 99 is unknown"),
    "nested": (gguf_bytes(array(ARRAY, 1, bytes(16))), "key 'k': an array of arrays"),
    "array length": (gguf_bytes(array(4, 2**62)), "key 'k': length is 4611686018427387904, more"),
    "string array length": (gguf_bytes(array(STRING, 2**61)), "key 'k': length is 23058430092"),
    "string in array": (gguf_bytes(array(STRING, 1, U64(2**40))), "goes beyond the file"),
    "strings cut": (
        gguf_bytes(array(STRING, 2, text(bytes(16))), data=b"")[: 24 + 25 + 24],
        "key 'k' goes beyond the file",
    ),
    "strings end": (gguf_bytes(array(STRING, 4, text("")), data=b""), "key 'k'"),
    "alignment 0": (gguf_bytes(aligned(U32(0))), "must be a power of two stored as uint32, not 0"),
    "alignment 24": (gguf_bytes(aligned(U32(24))), "power of two stored as uint32, not 24"),
    "alignment type": (gguf_bytes(aligned(U64(32), 10)), "stored as uint32, not 32"),
    "name length": (gguf_bytes(tensor_list=[U64(2**40) + bytes(32)]), "tensor name .* goes beyond"),
    "name UTF-8": (gguf_bytes(tensor_list=[listed(b"\xff")]), "tensor name is not UTF-8"),
    "nameless": (gguf_bytes(tensor_list=[listed("a"), listed("")]), "tensor name '' must be"),
    "0 dimensions": (gguf_bytes(tensor_list=[listed(sizes=()) + bytes(8)]), "has 0 dimensions"),
    "5 dimensions": (gguf_bytes(tensor_list=[listed(sizes=[1] * 5)]), "has 5 dimensions"),
    "zero size": (gguf_bytes(tensor_list=[listed(sizes=(4, 0))]), r"sizes \[4, 0\] must be from 1"),
    "size": (gguf_bytes(tensor_list=[listed(sizes=[2**63])]), "must be from 1 to 2.63 - 1"),
    "overflow": (gguf_bytes(tensor_list=[listed(sizes=[2**32] * 4)]), "holds 2.63 values or more"),
    "type": (gguf_bytes(tensor_list=[listed(kind=4)]), "type 4 is unknown to the gguf library"),
    "block": (gguf_bytes(tensor_list=[listed(kind=8)]), "rows of 4 do not divide into Q8_0 blocks"),
    "offset": (gguf_bytes(tensor_list=[listed(offset=8)]), "offset 8 is not a multiple of the ali"),
    "beyond": (gguf_bytes(tensor_list=[listed(offset=32)]), "32 bytes at offset 32 go beyond"),
    "huge offset": (gguf_bytes(tensor_list=[listed(offset=2**64 - 32)]), "go beyond the file's"),
    "twice": (gguf_bytes(tensor_list=[listed(), listed()]), "tensor 'w' appears twice"),
    "overlap": (gguf_bytes(tensor_list=[listed("v"), listed("w")]), "tensor 'w' overlaps 'v'"),
    "split": (
        gguf_bytes([pair("split.tensors.count", 5, U32(3))], [listed()]),
        "split.tensors.count is 3, but the shards hold 1",
    ),
    "split type": (gguf_bytes([pair("split.no", STRING, text("0"))], [listed()]), "says it is sha"),
}


@pytest.mark.parametrize(("content", "match"), FILES.values(), ids=FILES.keys())
def test_an_unsound_file_is_refused(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(UnreadableInput, match=match) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 800


def test_the_hand_made_file_is_sound_when_nothing_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes([pair("k", 4, U32(1))], [listed()]))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read_rows("w", 0, 2).tolist() == [[0.0] * 4] * 2


def test_version_2_opens(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes(tensor_list=[listed()], version=2))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.model.tensors["w"].shape == (2, 4)


def test_a_header_over_the_cap_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes(array(0, 10**8)))
    os.truncate(path, 2 * 10**8)
    with pytest.raises(UnreadableInput, match="more than the 99999951 bytes that remain can hold"):
        open_checkpoint(path)


def test_a_truncated_download_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    quantized_gguf(path)
    os.truncate(path, path.stat().st_size - 64)
    with pytest.raises(UnreadableInput, match="the download may be incomplete"):
        open_checkpoint(path)


def test_a_type_without_a_decoder_is_told_when_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    kind = gguf.GGMLQuantizationType.Q8_K
    nbytes = gguf.GGML_QUANT_SIZES[kind][1]
    path.write_bytes(gguf_bytes(tensor_list=[listed(sizes=[256], kind=kind)], data=bytes(nbytes)))
    with open_checkpoint(path) as checkpoint:
        with pytest.raises(UnreadableInput, match="tensor 'w': the gguf library cannot decode typ"):
            checkpoint.read_rows("w", 0, 1)
        assert checkpoint.read_raw("w", 0, 1).shape == (1, nbytes)


def test_nan_and_infinite_scales_decode_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    kind = gguf.GGMLQuantizationType.Q8_0
    block = b"\x00\x7e" + bytes([1] * 32) + b"\x00\x7c" + bytes([1] * 32)
    path.write_bytes(gguf_bytes(tensor_list=[listed(sizes=[64], kind=kind)], data=block))
    with open_checkpoint(path) as checkpoint:
        row = checkpoint.read_rows("w", 0, 1)[0]
    assert row[:32].isnan().all()
    assert row[32:].isinf().all()


def test_data_begins_at_the_alignment_the_file_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    head = gguf_bytes(aligned(U32(4096)), [listed()], data=b"")
    path.write_bytes(head + bytes(4096 - len(head)) + struct.pack("<8f", *range(8)))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read_rows("w", 1, 2).tolist() == [[4.0, 5.0, 6.0, 7.0]]
