"""Artifacts are read back by the safetensors library, quantized or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from safetensors_encoders import awq_packed, random_codes, random_scales, values_of

from qconv.errors import UnreadableInput
from qconv_safetensors._reader import SafetensorsReader

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def write(
    folder: Path, tensors: dict[str, torch.Tensor], quantization: Any = None, shards: int = 1
) -> Path:
    folder.mkdir()
    names = sorted(tensors)
    where = {}
    for number in range(shards):
        file = f"model-{number}.safetensors" if shards > 1 else "model.safetensors"
        mine = {name: tensors[name] for name in names[number::shards]}
        save_file(mine, folder / file)
        where |= dict.fromkeys(mine, file)
    if shards > 1:
        index = json.dumps({"metadata": {}, "weight_map": where})
        (folder / "model.safetensors.index.json").write_text(index)
    config = {"model_type": "llama"}
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def awq() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    codes, zero, scale = random_codes(16, 64, 4), random_codes(16, 2, 4), random_scales(16, 2)
    tensors = {
        "m.qweight": awq_packed(codes.t()),
        "m.qzeros": awq_packed(zero.t()),
        "m.scales": scale.t().contiguous(),
        "norm.weight": torch.arange(4, dtype=torch.bfloat16),
    }
    return tensors, values_of(codes, zero, scale, 32)


@pytest.mark.parametrize("shards", [1, 2])
def test_quantized_tensors_are_decoded(tmp_path: Path, shards: int) -> None:
    tensors, expected = awq()
    reader = SafetensorsReader(write(tmp_path / "artifact", tensors, AWQ, shards))
    assert {name: info.shape for name, info in reader.tensors.items()} == {
        "m.weight": (16, 64),
        "norm.weight": (4,),
    }
    assert torch.equal(reader.read("m.weight"), expected)
    assert torch.equal(reader.read("norm.weight"), torch.arange(4, dtype=torch.float32))
    assert reader.tensors["m.weight"].dtype == "uint4_g32"
    assert reader.tensors["m.weight"].nbytes == 16 * 64 // 2 + 16 * 2 // 2 + 16 * 2 * 2
    assert list(reader.encoded) == ["m.weight"]


def test_a_file_stands_for_its_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "artifact", {"a": torch.ones(2, 3, dtype=torch.float16)})
    reader = SafetensorsReader(folder / "model.safetensors")
    assert reader.tensors["a"].nbytes == 12
    assert torch.equal(reader.read("a"), torch.ones(2, 3))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match=r"holds no \.safetensors file"):
        SafetensorsReader(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "artifact", {"a": torch.ones(2)})
    (folder / "model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(UnreadableInput, match=r"model\.safetensors: not a sound file"):
        SafetensorsReader(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "artifact", {"a": torch.ones(2)})
    save_file({"a": torch.ones(2)}, folder / "model-2.safetensors")
    with pytest.raises(UnreadableInput, match=r"tensor 'a' is in another shard, too"):
        SafetensorsReader(folder)


def test_an_index_that_tells_otherwise_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "artifact", {"a": torch.ones(2), "b": torch.ones(2)}, shards=2)
    save_file({"c": torch.ones(2)}, folder / "model-1.safetensors")
    with pytest.raises(UnreadableInput, match=r"tensor 'b' is in the index or in a shard, but not"):
        SafetensorsReader(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, r"config\.json: cannot be read"), ("{", r"cannot be read"), ("[]", r"holds no JSON")],
)
def test_a_config_that_cannot_be_read_is_refused(
    tmp_path: Path, text: str | None, message: str
) -> None:
    folder = write(tmp_path / "artifact", {"a": torch.ones(2)})
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(UnreadableInput, match=message):
        SafetensorsReader(folder)


def test_an_unknown_kind_of_quantization_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "artifact", {"a": torch.ones(2)}, {"quant_method": "hqq"})
    with pytest.raises(UnreadableInput, match=r"'hqq'.* is of no kind that is decoded"):
        SafetensorsReader(folder)
