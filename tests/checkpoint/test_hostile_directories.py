"""Facts about hostile and incomplete model directories: no file of theirs leads elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from checkpoint.written import beside_config, hf_directory, quantized_gguf, sharded_directory
from qconv.checkpoint import open_checkpoint
from qconv.errors import UnreadableInput

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def shards() -> dict[str, dict[str, torch.Tensor]]:
    return {ONE: {"a": torch.ones(2)}, TWO: {"b": torch.ones(2)}}


def indexed(directory: Path, weight_map: Any) -> Path:
    return sharded_directory(directory, shards(), {"weight_map": weight_map})


def refused(path: Path | str, match: str) -> str:
    with pytest.raises(UnreadableInput, match=match) as caught:
        open_checkpoint(path)
    return str(caught.value)


def test_a_missing_path_is_told(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refused(tmp_path / "none", "No such file")
    refused("a\0b", "embedded null")
    refused(tmp_path / ("x" * 5000), "too long")


def test_an_unknown_file_is_refused(tmp_path: Path) -> None:
    refused(beside_config(tmp_path, b"hello", "notes.txt"), "not a kind of checkpoint")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickle_is_never_read(tmp_path: Path, name: str) -> None:
    path = beside_config(tmp_path, b"\x80\x04.", name)
    refused(path, "pickle files can run code .* convert the model to safetensors")
    refused(tmp_path, f"holds only '{name}': pickle files can run code")


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "holds no .safetensors, no .gguf and no .onnx file")


def test_a_missing_config_is_told_with_its_place(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path)
    (directory / "config.json").unlink()
    refused(directory, "config.json: not found")
    message = refused(directory / "model.safetensors", "config.json: not found")
    assert str(directory / "config.json") in message
    with open_checkpoint(directory, require_config=False) as checkpoint:
        assert checkpoint.model.config == {}


@pytest.mark.parametrize("content", [b"[1]", b"{", b'{"a": 1, "a": 2}', b"\xff"])
def test_an_unsound_config_is_refused(tmp_path: Path, content: bytes) -> None:
    directory = hf_directory(tmp_path)
    (directory / "config.json").write_bytes(content)
    refused(directory, r"config\.json: ")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/x.safetensors",
        "a\\x.safetensors",
        "C:x.safetensors",
        "\x1b.safetensors",
    ],
)
def test_an_index_names_plain_files_only(tmp_path: Path, name: str) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    refused(indexed(tmp_path / "m", {"a": name}), "must be a plain file name")


@pytest.mark.parametrize("name", ["passwd", ".", "..", "", 3, None, ["x.safetensors"]])
def test_an_index_names_safetensors_only(tmp_path: Path, name: object) -> None:
    refused(indexed(tmp_path, {"a": name}), "is not the name of a .safetensors file")


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_map_is_refused(tmp_path: Path, weight_map: object) -> None:
    refused(indexed(tmp_path, weight_map), "weight_map must be an object")


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    directory = sharded_directory(tmp_path, shards())
    (directory / TWO).unlink()
    refused(directory, f"{TWO}: cannot be found")


def test_an_index_that_names_too_much_is_refused(tmp_path: Path) -> None:
    directory = indexed(tmp_path, {"a": ONE, "b": TWO, "c": TWO})
    refused(directory, f"names tensor 'c' in '{TWO}', which does not hold it .1 such")


def test_an_index_that_names_too_little_is_refused(tmp_path: Path) -> None:
    directory = sharded_directory(
        tmp_path, {ONE: {"a": torch.ones(2), "x": torch.ones(2)}}, {"weight_map": {"a": ONE}}
    )
    refused(directory, "tensor 'x': the index does not name it")


def test_an_index_that_swaps_shards_is_refused(tmp_path: Path) -> None:
    refused(indexed(tmp_path, {"a": TWO, "b": ONE}), f"the index says it is in '{TWO}'")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    both = {ONE: {"a": torch.ones(2), "x": torch.ones(2)}, TWO: {"a": torch.ones(2)}}
    refused(sharded_directory(tmp_path, both), f"tensor 'a': the index says it is in '{TWO}'")


def test_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    directory = sharded_directory(tmp_path, shards())
    (directory / "model.safetensors.index.json").unlink()
    refused(directory, "holds shards .* but no .safetensors.index.json")
    refused(directory / ONE, "is one shard of several")
    (directory / TWO).unlink()
    refused(directory, "holds shards .* but no .safetensors.index.json")


def test_two_models_in_one_directory_are_refused(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path)
    (directory / "model.safetensors").rename(directory / "a.safetensors")
    save_file({"a": torch.ones(2)}, directory / "b.safetensors")
    refused(directory, "more than one model: 'a.safetensors', 'b.safetensors'; pass")


def test_a_gguf_beside_safetensors_is_refused(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path)
    quantized_gguf(directory / "x.gguf")
    refused(directory, "more than one model: 'x.gguf', 'model.safetensors'")


def test_a_whole_file_beside_an_index_is_refused(tmp_path: Path) -> None:
    directory = sharded_directory(hf_directory(tmp_path), shards())
    refused(directory, "'model.safetensors', 'model.safetensors.index.json'")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_out_of_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    directory = hf_directory(tmp_path / "m")
    (directory / "tokenizer.json").write_text("{}")
    (directory / name).rename(tmp_path / "secret")
    (directory / name).symlink_to("../secret")
    refused(directory, f"{name}: links to .*secret, outside its directory")


def test_a_shard_that_links_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    directory = sharded_directory(tmp_path / "m", shards())
    (directory / ONE).rename(tmp_path / "secret")
    (directory / ONE).symlink_to(tmp_path / "secret")
    refused(directory, "outside its directory")


def test_blobs_that_are_a_link_themselves_do_not_open_the_cache(tmp_path: Path) -> None:
    secrets = hf_directory(tmp_path / "secrets")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "r"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").symlink_to(secrets)
    for name in ["config.json", "model.safetensors"]:
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    refused(snapshot, "outside its directory")


def test_a_link_that_goes_nowhere_is_refused(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path)
    (directory / "tokenizer.json").symlink_to("tokenizer.json")
    (directory / "vocab.json").symlink_to("nothing")
    refused(directory, "tokenizer.json: cannot be found")
    (directory / "tokenizer.json").unlink()
    refused(directory, "vocab.json: cannot be found")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pipe_is_refused_without_waiting(tmp_path: Path, name: str) -> None:
    directory = hf_directory(tmp_path)
    (directory / name).unlink()
    os.mkfifo(directory / name)
    refused(directory, f"{name}: not a regular file")


def test_devices_and_directories_are_no_weight_files(tmp_path: Path) -> None:
    refused("/dev/zero", "not a regular file")
    directory = hf_directory(tmp_path)
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").mkdir()
    refused(directory, "model.safetensors: not a regular file")


def test_an_oversized_companion_is_refused(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path)
    (directory / "tokenizer.json").touch()
    os.truncate(directory / "tokenizer.json", 2**28 + 1)
    refused(directory, "tokenizer.json: 268435457 bytes, but a companion file may take at most")


def test_a_file_name_cannot_garble_the_terminal(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path)
    (directory / "model.safetensors").rename(directory / "a.safetensors")
    save_file({"a": torch.ones(2)}, directory / "\x1b[2J.safetensors")
    assert "\x1b" not in refused(directory, "more than one model")


def test_an_index_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    directory = sharded_directory(tmp_path, shards())
    text = json.dumps({"a": ONE})[:-1] + ', "a": "' + TWO + '"}'
    (directory / "model.safetensors.index.json").write_text('{"weight_map": ' + text + "}")
    refused(directory, "key 'a' appears twice")


def test_what_cannot_be_listed_or_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    directory = hf_directory(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        refused(directory, "config.json: cannot be read: .*Permission denied")
    monkeypatch.setattr(Path, "iterdir", refuse)
    refused(directory, "cannot be listed: .*Permission denied; check its permissions")
