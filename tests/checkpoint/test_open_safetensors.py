"""Facts about sound safetensors checkpoints: what opens, and what is read from them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoint.written import CONFIG, beside_config, hf_directory, sharded_directory, tensors
from qconv.checkpoint import Checkpoint, FileCheckpoint, open_checkpoint


def rows_of(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape[:-1]).numel())


def whole(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    shape = checkpoint.model.tensors[name].shape
    return checkpoint.read_rows(name, 0, rows_of(shape)).reshape(shape)


def test_a_directory_reads_back_what_the_library_saved(tmp_path: Path) -> None:
    with open_checkpoint(hf_directory(tmp_path / "tiny")) as checkpoint:
        assert checkpoint.model.kind == "safetensors"
        assert checkpoint.model.name == "tiny"
        assert checkpoint.model.config == CONFIG
        assert checkpoint.model.metadata == {"format": "pt"}
        assert checkpoint.warnings == ()
        assert set(checkpoint.model.tensors) == set(tensors())
        for name, value in tensors().items():
            read = whole(checkpoint, name)
            assert read.dtype == value.dtype
            assert torch.equal(read, value)


def test_a_slab_is_its_rows_only(tmp_path: Path) -> None:
    with open_checkpoint(hf_directory(tmp_path)) as checkpoint:
        expected = tensors()["b.weight"].reshape(8, 6)
        assert torch.equal(checkpoint.read_rows("b.weight", 3, 7), expected[3:7])
        assert checkpoint.read_rows("b.weight", 5, 5).shape == (0, 6)


def test_raw_rows_are_the_stored_bytes(tmp_path: Path) -> None:
    with open_checkpoint(hf_directory(tmp_path)) as checkpoint:
        raw = checkpoint.read_raw("c.bias", 0, 1)
        assert raw.dtype == torch.uint8
        assert raw.shape == (1, 10)
        assert torch.equal(raw.view(torch.float16)[0], tensors()["c.bias"])


def test_a_scalar_is_one_row_of_one(tmp_path: Path) -> None:
    with open_checkpoint(hf_directory(tmp_path)) as checkpoint:
        assert checkpoint.read_rows("d.scalar", 0, 1).tolist() == [[3]]


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.uint16,
        torch.int32,
        torch.uint32,
        torch.int64,
        torch.uint64,
        torch.float64,
        torch.bool,
    ],
    ids=str,
)
def test_every_plain_type_reads_as_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=torch.float32).to(dtype)
    with open_checkpoint(hf_directory(tmp_path, {"w": value})) as checkpoint:
        read = checkpoint.read_rows("w", 0, 2)
        assert read.dtype == dtype
        assert torch.equal(read.to(torch.float64), value.to(torch.float64))


def test_rows_own_their_memory(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(hf_directory(tmp_path))
    first = checkpoint.read_rows("a.weight", 0, 6)
    first.zero_()
    second = checkpoint.read_rows("a.weight", 0, 6)
    checkpoint.close()
    assert torch.equal(second, tensors()["a.weight"])


def test_companions_come_as_bytes_and_strangers_do_not(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path)
    (directory / "tokenizer.json").write_bytes(b'{"model": {}}')
    (directory / "README.md").write_text("hello")
    with open_checkpoint(directory) as checkpoint:
        assert set(checkpoint.model.files) == {"config.json", "tokenizer.json"}
        assert checkpoint.model.files["tokenizer.json"] == b'{"model": {}}'


def test_a_single_file_opens_with_its_neighbours(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path)
    (directory / "model.safetensors").rename(directory / "mine.safetensors")
    with open_checkpoint(str(directory / "mine.safetensors")) as checkpoint:
        assert checkpoint.model.name == "mine"
        assert torch.equal(whole(checkpoint, "a.weight"), tensors()["a.weight"])


def shards() -> dict[str, dict[str, torch.Tensor]]:
    return {
        "model-00001-of-00002.safetensors": {"a": torch.ones(2, 3)},
        "model-00002-of-00002.safetensors": {"b": torch.full((3, 2), 2.0)},
    }


@pytest.mark.parametrize("name", ["", "model.safetensors.index.json"])
def test_shards_open_as_one_model(tmp_path: Path, name: str) -> None:
    directory = sharded_directory(tmp_path / "tiny", shards())
    with open_checkpoint(directory / name) as checkpoint:
        assert checkpoint.model.name == "tiny"
        assert torch.equal(whole(checkpoint, "a"), torch.ones(2, 3))
        assert torch.equal(whole(checkpoint, "b"), torch.full((3, 2), 2.0))
        assert checkpoint.nbytes == sum((directory / shard).stat().st_size for shard in shards())


def test_a_file_the_index_does_not_name_is_left_out_aloud(tmp_path: Path) -> None:
    directory = sharded_directory(tmp_path, shards())
    save_file({"a": torch.zeros(1)}, directory / "consolidated.safetensors")
    with open_checkpoint(directory) as checkpoint:
        assert len(checkpoint.warnings) == 1
        assert "'consolidated.safetensors'" in checkpoint.warnings[0]


def test_a_hugging_face_cache_opens_through_its_links(tmp_path: Path) -> None:
    repository = tmp_path / "models--me--tiny"
    real = hf_directory(tmp_path / "real")
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate(["config.json", "model.safetensors"]):
        (real / name).rename(blobs / f"{number}")
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.model.name == "tiny"
        assert torch.equal(whole(checkpoint, "a.weight"), tensors()["a.weight"])


def test_a_file_the_user_names_may_be_a_link(tmp_path: Path) -> None:
    real = hf_directory(tmp_path / "real")
    link = beside_config(tmp_path, b"")
    link.unlink()
    link.symlink_to(real / "model.safetensors")
    with open_checkpoint(link) as checkpoint:
        assert checkpoint.model.name == "x"


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path)

    def fingerprint() -> str:
        with open_checkpoint(directory) as checkpoint:
            return checkpoint.fingerprint()

    first = fingerprint()
    assert fingerprint() == first
    (directory / "config.json").write_text(json.dumps({**CONFIG, "x": 1}))
    second = fingerprint()
    assert second != first
    hf_directory(directory, {"other": torch.ones(2, 2)})
    assert fingerprint() not in {first, second}


def test_threads_read_the_same(tmp_path: Path) -> None:
    value = torch.arange(3_000_000, dtype=torch.float32).reshape(3000, 1000)
    with open_checkpoint(hf_directory(tmp_path, {"w": value})) as checkpoint:
        starts = [17 * number % 2900 for number in range(200)]
        with ThreadPoolExecutor(4) as pool:
            slabs = list(pool.map(lambda at: checkpoint.read_rows("w", at, at + 100), starts))
    assert all(
        torch.equal(slab, value[at : at + 100]) for at, slab in zip(starts, slabs, strict=True)
    )


def test_a_caller_that_asks_for_what_is_not_there_is_told(tmp_path: Path) -> None:
    with open_checkpoint(hf_directory(tmp_path)) as checkpoint:
        with pytest.raises(KeyError, match="no tensor 'missing'"):
            checkpoint.read_rows("missing", 0, 1)
        with pytest.raises(ValueError, match="rows 2:7 are not within its 6 rows"):
            checkpoint.read_rows("a.weight", 2, 7)
        with pytest.raises(ValueError, match="rows -1:2 are not within"):
            checkpoint.read_raw("a.weight", -1, 2)
        with pytest.raises(ValueError, match="columns 2:9 must be within 8"):
            checkpoint.read_part("a.weight", 0, 2, 9)
    with pytest.raises(ValueError, match="the checkpoint is closed"):
        checkpoint.read_rows("a.weight", 0, 1)
    checkpoint.close()


def test_a_part_of_a_row_is_its_columns(tmp_path: Path) -> None:
    with open_checkpoint(hf_directory(tmp_path)) as checkpoint:
        assert checkpoint.block("a.weight") == 1
        part = checkpoint.read_part("a.weight", 4, 3, 7)
        assert torch.equal(part, tensors()["a.weight"][4, 3:7])


def test_a_file_checkpoint_is_a_checkpoint(tmp_path: Path) -> None:
    checkpoint: Checkpoint = open_checkpoint(hf_directory(tmp_path))
    assert isinstance(checkpoint, FileCheckpoint)
    checkpoint.close()


def test_a_directory_of_one_file_opens_whatever_its_name(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path / "tiny")
    (directory / "model.safetensors").rename(directory / "weights.safetensors")
    with open_checkpoint(directory) as checkpoint:
        assert checkpoint.model.name == "tiny"
        assert checkpoint.warnings == ()


def test_the_usual_name_wins_and_the_rest_is_left_out_aloud(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path)
    save_file({"a": torch.zeros(1)}, directory / "adapter.safetensors")
    with open_checkpoint(directory) as checkpoint:
        assert set(checkpoint.model.tensors) == set(tensors())
        assert "'adapter.safetensors'" in checkpoint.warnings[0]
