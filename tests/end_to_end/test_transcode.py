"""Real layouts, one into the other and back, on a tiny model: every weight stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import qconv
from calibration.tokenized import save_model, write_texts
from qconv._host import load_plugins
from qconv._sources import open_source
from qconv.checkpoint import DecodedCheckpoint
from qconv.errors import Unsupported


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_model(folder, hidden_size=64, intermediate_size=128)


def converted(model: Path, target: str, out: Path) -> Path:
    qconv.convert(model, target, out=out, threads=1)
    (folder,) = [each for each in out.iterdir() if each.is_dir()]
    return folder


def transcoded(source: Path, target: str, out: Path) -> Path:
    done = qconv.transcode(source, target, out=out, threads=1)
    assert done.compared[0] > 20
    return done.artifacts[0].files[0].parent


def decoded(folder: Path) -> dict[str, torch.Tensor]:
    with open_source(folder, load_plugins()) as checkpoint:
        assert isinstance(checkpoint, DecodedCheckpoint)
        return {
            name: checkpoint.read_rows(name, 0, info.numel // info.shape[-1]).float()
            for name, info in checkpoint.model.tensors.items()
        }


def assert_same(one: Path, other: Path) -> None:
    before, after = decoded(one), decoded(other)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("first", "others"),
    [
        ("int4,group_size=32,symmetric=true", ["gptq", "awq", "gptq_v2", "int4"]),
        ("int4,group_size=32", ["awq", "gptq_v2", "int4"]),
        ("gptq,group_size=32", ["int4", "awq", "gptq"]),
        ("awq,group_size=64", ["gptq_v2", "awq"]),
        ("int8,group_size=channel", ["int8", "gptq"]),
        ("fp8", ["fp8"]),
        ("nf4", ["nf4"]),
        ("fp4,double_quant=false", ["fp4"]),
    ],
)
def test_a_chain_of_formats_changes_no_value(tmp_path, model, first, others):
    folder = start = converted(model, f"safetensors:{first}", tmp_path / "0")
    for number, other in enumerate(others):
        folder = transcoded(folder, f"safetensors:{other}", tmp_path / str(number + 1))
        assert_same(start, folder)


def test_symmetric_codes_come_back_as_they_were(tmp_path, model):
    start = converted(model, "safetensors:gptq,group_size=32", tmp_path / "0")
    there = transcoded(start, "safetensors:awq", tmp_path / "1")
    back = transcoded(there, "safetensors:gptq", tmp_path / "2")
    before, after = (load_file(each / "model.safetensors") for each in (start, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        ("fp8", "gptq", "fp8_channel"),
        ("nf4", "int4", "nf4_b64"),
        ("int8,group_size=channel", "awq", "int8_channel"),
        ("gptq,group_size=32", "bf16", "would decode .* use qconv convert"),
    ],
)
def test_what_would_round_is_refused(tmp_path, model, first, second, match):
    start = converted(model, f"safetensors:{first}", tmp_path / "0")
    with pytest.raises(Unsupported, match=match):
        qconv.transcode(start, f"safetensors:{second}", out=tmp_path / "1")
    assert not (tmp_path / "1").exists()


def test_a_quantized_checkpoint_can_be_calibrated_on_and_quantized_again(tmp_path, model):
    start = converted(model, "safetensors:awq,group_size=32", tmp_path / "0")
    text = write_texts(tmp_path / "text.jsonl", 4)
    done = qconv.convert(
        start,
        "safetensors:int4,group_size=64,symmetric=true",
        out=tmp_path / "1",
        method="awq,gptq",
        calibration=qconv.Calibration(source=str(text), windows=2, window_length=16),
    )
    assert any("quantizing twice loses twice" in each for each in done.plan.warnings)
    assert "uint4_g32" in qconv.inspect(start).types
    assert "int4_g64" in qconv.inspect(done.artifacts[0].files[0].parent).types
