"""Facts about sound GGUF checkpoints: types, values, shards, and large vocabularies."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from checkpoint.written import gguf_bytes, listed, pair, quantized_gguf, split_gguf
from qconv.checkpoint import GgufValue, open_checkpoint
from qconv.errors import UnreadableInput


def test_every_row_decodes_as_the_gguf_library_does(tmp_path: Path) -> None:
    expected = quantized_gguf(tmp_path / "tiny.gguf")
    with open_checkpoint(tmp_path / "tiny.gguf") as checkpoint:
        assert checkpoint.model.kind == "gguf"
        assert checkpoint.model.name == "tiny"
        assert checkpoint.model.config == {}
        assert list(checkpoint.model.tensors) == list(expected)
        for name, values in expected.items():
            assert checkpoint.model.tensors[name].shape == (6, 64)
            read = checkpoint.read_rows(name, 2, 5)
            assert torch.equal(read.to(torch.float32), torch.from_numpy(values[2:5]))


def test_float_types_stay_as_stored_and_blocks_become_float32(tmp_path: Path) -> None:
    quantized_gguf(tmp_path / "tiny.gguf")
    with open_checkpoint(tmp_path / "tiny.gguf") as checkpoint:
        dtypes = [checkpoint.read_rows(f"{name}.weight", 0, 1).dtype for name in "abcde"]
        assert dtypes[:3] == [torch.float32, torch.float16, torch.bfloat16]
        assert dtypes[3:] == [torch.float32, torch.float32]
        assert checkpoint.read_rows("d.weight", 3, 3).shape == (0, 64)
        assert checkpoint.read_raw("d.weight", 0, 2).shape == (2, 68)
        assert checkpoint.block("d.weight") == 32


def test_a_part_of_a_quantized_row_begins_at_a_block(tmp_path: Path) -> None:
    expected = quantized_gguf(tmp_path / "tiny.gguf")["e.weight"]
    with open_checkpoint(tmp_path / "tiny.gguf") as checkpoint:
        part = checkpoint.read_part("e.weight", 3, 32, 64)
        assert torch.equal(part, torch.from_numpy(expected[3, 32:]))
        with pytest.raises(ValueError, match="multiples of 32"):
            checkpoint.read_part("e.weight", 3, 31, 64)


def test_a_quantized_source_is_warned_about(tmp_path: Path) -> None:
    quantized_gguf(tmp_path / "tiny.gguf")
    with open_checkpoint(tmp_path / "tiny.gguf") as checkpoint:
        assert len(checkpoint.warnings) == 1
        assert "quantized already (1 Q4_0, 1 Q8_0 tensors)" in checkpoint.warnings[0]


def test_metadata_keeps_its_exact_types(tmp_path: Path) -> None:
    quantized_gguf(tmp_path / "tiny.gguf")
    with open_checkpoint(tmp_path / "tiny.gguf") as checkpoint:
        metadata = checkpoint.model.metadata
    assert metadata["llama.block_count"] == GgufValue(type=4, value=1)
    assert metadata["general.architecture"] == GgufValue(type=8, value="llama")
    assert metadata["tokenizer.ggml.add_bos_token"] == GgufValue(type=7, value=True)
    tokens = GgufValue(type=9, value=("<s>", "</s>", "größe"), element_type=8)
    assert metadata["tokenizer.ggml.tokens"] == tokens
    assert metadata["tokenizer.ggml.scores"].value == (0.5, -1.0, 2.0)


@pytest.mark.parametrize("kind", [kind for kind in gguf.GGUFValueType if kind.name != "ARRAY"])
def test_every_value_type_survives_a_round_trip(tmp_path: Path, kind: gguf.GGUFValueType) -> None:
    value = {"BOOL": True, "STRING": "x"}.get(kind.name, 7)
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"

    def write(path: Path, stored: object, key_type: gguf.GGUFValueType) -> None:
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_key_value("k", stored, key_type)
        writer.add_tensor("w", np.ones((1, 4), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write(first, value, kind)
    with open_checkpoint(first) as checkpoint:
        read = checkpoint.model.metadata["k"]
    write(second, read.value, gguf.GGUFValueType(read.type))
    assert first.read_bytes() == second.read_bytes()


def test_a_directory_of_one_gguf_opens_as_that(tmp_path: Path) -> None:
    quantized_gguf(tmp_path / "tiny.gguf")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.model.name == "tiny"


@pytest.mark.parametrize("name", ["", "tiny-00001-of-00003.gguf"])
def test_split_files_open_as_one(tmp_path: Path, name: str) -> None:
    assert len(split_gguf(tmp_path)) == 3
    with open_checkpoint(tmp_path / name) as checkpoint:
        assert checkpoint.model.name == "tiny"
        assert set(checkpoint.model.tensors) == {"a.weight", "b.weight", "c.weight"}
        for tensor in "abc":
            assert checkpoint.read_rows(f"{tensor}.weight", 1, 2).unique().item() == ord(tensor)
        assert not any(key.startswith("split.") for key in checkpoint.model.metadata)
        assert "general.architecture" in checkpoint.model.metadata


def test_a_later_shard_points_to_the_first(tmp_path: Path) -> None:
    paths = split_gguf(tmp_path)
    with pytest.raises(UnreadableInput, match="is shard 2 of 3; pass .*tiny-00001-of-00003.gguf"):
        open_checkpoint(paths[1])


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    paths = split_gguf(tmp_path)
    paths[2].unlink()
    with pytest.raises(UnreadableInput, match="tiny-00003-of-00003.gguf: cannot be found"):
        open_checkpoint(paths[0])


def test_a_renamed_shard_is_refused(tmp_path: Path) -> None:
    paths = split_gguf(tmp_path)
    paths[1].rename(tmp_path / "x")
    paths[2].rename(paths[1])
    (tmp_path / "x").rename(paths[2])
    with pytest.raises(UnreadableInput, match="says it is shard 3 of 3, but is named as shard 2"):
        open_checkpoint(paths[0])
    paths[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(UnreadableInput, match="shard 1 of 3, but is named as shard 1 of 1"):
        open_checkpoint(tmp_path / "alone.gguf")


def test_shard_numbers_must_make_sense(tmp_path: Path) -> None:
    path = tmp_path / "tiny-00004-of-00003.gguf"
    quantized_gguf(path)
    with pytest.raises(UnreadableInput, match="shard numbers go from 1 to 3"):
        open_checkpoint(path)


def test_two_gguf_models_in_one_directory_are_refused(tmp_path: Path) -> None:
    quantized_gguf(tmp_path / "a.gguf")
    quantized_gguf(tmp_path / "b.gguf")
    with pytest.raises(UnreadableInput, match=r"more than one model: 'a\.gguf', 'b\.gguf'"):
        open_checkpoint(tmp_path)


def test_a_cached_gguf_keeps_its_name(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "r", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    quantized_gguf(blobs / "abc")
    (snapshot / "tiny.gguf").symlink_to("../../blobs/abc")
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.model.name == "tiny"


def test_a_large_vocabulary_parses_in_less_time_than_the_gguf_library_takes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", [f"token {number}" for number in range(50_000)])
    writer.add_tensor("w", np.ones((1, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    started = time.process_time()
    gguf.GGUFReader(path)
    theirs = time.process_time() - started
    started = time.process_time()
    with open_checkpoint(path) as checkpoint:
        ours = time.process_time() - started
        assert len(checkpoint.model.metadata["tokenizer.ggml.tokens"].value) == 50_000
    assert ours < theirs


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        split = [
            pair("split.no", 2, struct.pack("<H", number)),
            pair("split.count", 2, struct.pack("<H", 2)),
        ]
        path = tmp_path / f"tiny-{number + 1:05d}-of-00002.gguf"
        path.write_bytes(gguf_bytes(split, [listed("w")]))
    with pytest.raises(UnreadableInput, match="'w' is in 'tiny-00001-of-00002.gguf' too"):
        open_checkpoint(tmp_path)


def test_nine_files_are_not_all_listed(tmp_path: Path) -> None:
    for name in "abcdefghi":
        quantized_gguf(tmp_path / f"{name}.gguf")
    with pytest.raises(UnreadableInput, match=r"'h\.gguf' and 1 more; pass"):
        open_checkpoint(tmp_path)
