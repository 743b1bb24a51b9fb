"""Damaged folders, safetensors and ONNX: each damage is found at depth bytes, the tensor named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from validation.damage import (
    converted,
    edit_onnx,
    edit_safetensors,
    faults_of,
    model_at,
    validated,
)

INT4 = "safetensors:int4,group_size=64"
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return model_at(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def sound(source, tmp_path_factory) -> Path:
    return converted(source, INT4, tmp_path_factory.mktemp("sound"))


@pytest.fixture
def artifact(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / sound.name))


def test_a_sound_folder_has_no_faults_and_its_target_is_found_whatever_its_options(sound, source):
    result = validated(sound, source)
    assert result.target == "safetensors:int4"
    assert {each.grid for each in result.tensors} == {"F32", "uint4_g64"}
    assert (result.faults, faults_of(result)) == ((), {})
    assert result.grid_class == "4-bit"
    assert sorted(result.digests) == sorted(each.name for each in sound.iterdir())


def changed(name: str, change: Callable[[torch.Tensor], None]):
    def apply(tensors: dict[str, torch.Tensor]) -> None:
        change(tensors[name])

    return apply


def test_a_scale_with_the_wrong_sign_is_found(artifact, source):
    edit_safetensors(artifact, changed(f"{UP}.weight_scale", lambda scale: scale[3, 1].neg_()))
    found = faults_of(validated(artifact, source))
    assert list(found) == [f"{UP}.weight"]
    assert "a wrong scale?): first row 3, columns 64 to 127" in found[f"{UP}.weight"]


def test_one_zero_point_that_is_one_off_is_found(artifact, source):
    def shift(zeros: torch.Tensor) -> None:  # nibbles of eight rows in a word
        low = int(zeros[0, 2]) & 15
        zeros[0, 2] += 1 if low < 15 else -1

    edit_safetensors(artifact, changed(f"{UP}.weight_zero_point", shift))
    fault = faults_of(validated(artifact, source))[f"{UP}.weight"]
    assert "shifted as a whole (a zero-point off?): first row 0, columns 128 to 191" in fault


def test_all_zero_points_one_off_are_found(artifact, source):
    def shift(zeros: torch.Tensor) -> None:
        nibbles = torch.stack([(zeros >> (4 * n)) & 15 for n in range(8)])
        assert int(nibbles.max()) < 15
        zeros += 0x11111111

    edit_safetensors(artifact, changed(f"{UP}.weight_zero_point", shift))
    assert faults_of(validated(artifact, source)) == {
        f"{UP}.weight": "all its errors point one way (all zero-points off?)"
    }


def test_a_tensor_that_is_missing_is_named(artifact, source):
    edit_safetensors(artifact, lambda tensors: tensors.pop("model.norm.weight"))
    assert validated(artifact, source).faults == ("1 tensors are missing: 'model.norm.weight'",)


def test_a_truncated_file_is_a_fault_and_no_crash(artifact, source):
    path = artifact / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    result = validated(artifact, source)
    assert result.status == "fail"
    assert "not a sound file" in result.faults[0]


def test_a_norm_that_changed_without_any_rescaled_weight_is_found(artifact, source):
    edit_safetensors(artifact, changed("model.norm.weight", lambda norm: norm.mul_(1.5)))
    assert "relative error 0.5" in faults_of(validated(artifact, source))["model.norm.weight"]


def test_weights_rescaled_by_awq_are_no_fault(source, tmp_path):
    path = converted(
        source,
        INT4,
        tmp_path,
        method="awq",
        calibration=_calibration(tmp_path),
    )
    result = validated(path, source)
    assert (result.faults, faults_of(result)) == ((), {})
    assert any(each.rescaled for each in result.tensors)


def _calibration(folder: Path):
    from qconv.calibration import Calibration

    text = folder / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200, encoding="utf-8")
    return Calibration(source=text, windows=2, window_length=64)


def test_another_chat_template_is_found(artifact, source):
    template = artifact / "chat_template.jinja"
    assert template.exists()
    template.write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    (fault,) = validated(artifact, source).faults
    assert fault.startswith('tokenizer: chat template: line 1 is "{{ messages[0]')


def test_tokens_in_another_order_are_found(artifact, source):
    path = artifact / "tokenizer.json"
    parsed = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = parsed["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(parsed), encoding="utf-8")
    (fault,) = validated(artifact, source).faults
    assert "'B', but the source's is 'A' (2 of " in fault


def test_a_tokenizer_file_that_is_missing_is_found(artifact, source):
    (artifact / "tokenizer.json").unlink()
    assert "tokenizer: tokenizer.json is missing" in validated(artifact, source).faults


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> tuple[Path, Path]:
    from model.tiny import save

    folder = tmp_path_factory.mktemp("experts")
    save("mixtral", folder / "tiny", hidden_size=64, intermediate_size=128)
    return folder / "tiny", converted(
        folder / "tiny", "safetensors:int4,group_size=32", folder / "out"
    )


def test_experts_that_changed_places_are_found_and_told_apart(experts, tmp_path):
    source, sound = experts
    artifact = Path(shutil.copytree(sound, tmp_path / sound.name))
    assert validated(artifact, source).faults == ()
    names: list[str] = []

    def swap(tensors: dict[str, torch.Tensor]) -> None:
        first = [
            name
            for name in tensors
            if ".layers.0." in name and ".experts.0." in name and "w1" in name
        ]
        assert first
        for name in first:
            other = name.replace(".experts.0.", ".experts.3.")
            tensors[name], tensors[other] = tensors[other], tensors[name]
            names.append(name)

    edit_safetensors(artifact, swap)
    found = faults_of(validated(artifact, source))
    assert len(found) == 2
    assert any(".experts.0." in name and ".experts.3." in fault for name, fault in found.items())
    assert all("swapped?" in fault for fault in found.values())


@pytest.fixture(scope="module")
def graph(source, tmp_path_factory) -> Path:
    pytest.importorskip("onnxscript", reason="pip install 'qconv[onnx]'")
    return converted(source, "onnx:int4", tmp_path_factory.mktemp("graph"))


@pytest.fixture
def onnx_artifact(graph, tmp_path) -> Path:
    return Path(shutil.copytree(graph, tmp_path / graph.name))


def test_a_sound_graph_has_no_faults(graph, source):
    result = validated(graph, source)
    assert (result.target, result.faults, faults_of(result)) == ("onnx:int4", (), {})


def test_a_scale_of_a_graph_with_the_wrong_sign_is_found(onnx_artifact, source):
    def flip(scales: np.ndarray) -> None:
        scales[8 * 2 + 3] *= -1  # row 2 of eight groups

    edit_onnx(onnx_artifact, f"{UP}.weight_scale", flip, np.float32)
    fault = faults_of(validated(onnx_artifact, source))[f"{UP}.weight"]
    assert "a wrong scale?): first row 2, columns 96 to 127" in fault


def test_a_truncated_file_of_weights_is_a_fault(onnx_artifact, source):
    path = onnx_artifact / "model.onnx.data"
    path.write_bytes(path.read_bytes()[:-64])
    result = validated(onnx_artifact, source)
    assert result.status == "fail"
    assert "but the file holds" in result.faults[0]
