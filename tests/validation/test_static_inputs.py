"""What inputs are rounded with beforehand, damaged: at depth bytes, and in what blocks give."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from qconv.calibration import Calibration
from qconv.grids import ActivationGrid
from qconv.model import BlockModel
from qconv.validation import TensorResult
from qconv.validation._static_inputs import with_inputs_checked
from validation.damage import converted, edit_onnx, faults_of, model_at, validated

TARGET = "onnx:int8_static,sensitive=none"
UP = "model.layers.1.mlp.up_proj.weight"
STATIC = ActivationGrid(symmetric=False, scope="tensor", dynamic=False)


def checked(static: dict[str, Any], grid: ActivationGrid | None = STATIC) -> TensorResult:
    """A weight's result, of an artifact whose reader says this of inputs."""
    match: Any = SimpleNamespace(
        plans=[SimpleNamespace(name="w")],
        activation=lambda _: grid,
        activation_parameters={
            name: {"scale": torch.tensor([scale]), "zero_point": torch.tensor([128]).byte()}
            for name, scale in static.items()
        },
    )
    result = TensorResult(name="w", shape=(2, 2), grid="int8 channel", bits_per_weight=8.0)
    (found,) = with_inputs_checked([result], match)
    return found


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 0.0, -0.1])
def test_a_scale_that_is_none_is_a_fault(wrong):
    told = f"the scale of its input is {wrong:g}, but must be positive and finite"
    assert checked({"w": wrong}).faults == (told,)


@pytest.mark.parametrize(("odd", "reach"), [(1e9, "2.55e+11"), (1e-12, "2.55e-10")])
def test_a_scale_that_no_input_needs_is_a_warning(odd, reach):
    found = checked({"w": odd})
    told = f"the scale of its input is {odd:g}: codes reach over {reach} in all"
    assert (found.faults, found.warnings) == ((), (told,))


def test_a_scale_that_is_missing_beside_others_is_a_fault():
    told = "nothing says on which scale its input is rounded, which is uint8_tensor_static"
    assert checked({"v": 0.1}).faults == (told,)


@pytest.mark.parametrize("grid", [None, ActivationGrid(), STATIC])
def test_nothing_is_said_of_a_sound_one_nor_where_none_is_known(grid):
    for static in ({"w": 0.1}, {}):
        found = checked(static, grid)
        assert (found.faults, found.warnings) == ((), ())


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return model_at(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 200, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def one_backend():
    """It keeps the graphs that it exported, which takes seconds each."""
    pytest.importorskip("onnxscript", reason="pip install 'qconv[onnx]'")
    import qconv_onnx
    from qconv_onnx._backend import OnnxBackend

    kept = OnnxBackend()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qconv_onnx, "_load", lambda: lambda: kept)
        yield


@pytest.fixture(scope="module")
def sound(source, text, one_backend, tmp_path_factory) -> Path:
    calibration = Calibration(source=text, windows=2, window_length=64)
    out = tmp_path_factory.mktemp("sound")
    return converted(source, TARGET, out, calibration=calibration)


@pytest.fixture
def artifact(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / sound.name))


def edit_inputs(folder: Path, suffix: str, change: Callable[[np.ndarray], None], dtype: str) -> int:
    """Change all initializers of this suffix; how many there were."""
    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    names = [each.name for each in graph.initializer if each.name.endswith(suffix)]
    for name in names:
        edit_onnx(folder, name, change, dtype)
    return len(names)


def test_a_scale_of_a_graph_is_read_and_checked(artifact, source):
    edit_onnx(artifact, f"{UP}_input_scale", lambda scale: scale.fill(np.nan), "<f4")
    faults = faults_of(validated(artifact, source, target=TARGET))
    assert faults == {UP: "the scale of its input is nan, but must be positive and finite"}


def test_inputs_rounded_with_something_else_are_found_in_what_blocks_give(artifact, source, text):
    asked = {"target": TARGET, "depth": "model", "windows": 2, "window_length": 32, "text": text}
    sound = validated(artifact, source, **asked)
    assert max(each.relative_error for each in sound.blocks) < 0.05
    assert edit_inputs(artifact, "_input_zero_point", lambda zero: zero.fill(255), "u1") == 14
    shifted = validated(artifact, source, **asked)
    assert edit_inputs(artifact, "_input_scale", lambda scale: scale.__imul__(1000), "<f4") == 14
    widened = validated(artifact, source, **asked)
    for damaged in (shifted, widened):
        assert damaged.status == "fail"
        assert min(each.relative_error for each in damaged.blocks) > 0.1


def test_the_input_of_a_head_is_rounded_as_the_engine_rounds_it(source, one_backend, tmp_path):
    artifact = converted(source, "onnx:w8a8,sensitive=none", tmp_path)
    asked = {"target": "onnx:w8a8,sensitive=none", "windows": 2, "window_length": 32}
    (runtime,) = validated(artifact, source, depth="runtime", **asked).runtimes
    with pytest.MonkeyPatch.context() as patch:
        tail = BlockModel.tail
        patch.setattr(BlockModel, "tail", lambda self, **_: tail(self))
        (other,) = validated(artifact, source, depth="runtime", **asked).runtimes
    assert runtime.against_decoded.kl.mean < 0.1 * other.against_decoded.kl.mean


@pytest.mark.parametrize("left", ["head", "down_proj+head", "none"])
def test_what_was_left_out_of_rounding_is_known_without_being_told(
    left, source, one_backend, tmp_path
):
    target = f"onnx:w8a8,sensitive={left}"
    artifact = converted(source, target, tmp_path)
    found = validated(artifact, source, depth="runtime", windows=2, window_length=32)
    told = validated(artifact, source, depth="runtime", windows=2, window_length=32, target=target)
    assert found.target == "onnx:w8a8"
    assert found.logits.kl.mean == pytest.approx(told.logits.kl.mean, rel=1e-6)
    (runtime,) = found.runtimes
    # MatMulNBits rounds what was left out in blocks of its own.
    assert runtime.against_decoded.kl.mean < (1e-6 if left == "none" else 1e-3)


def test_static_scales_tell_the_target(artifact, source):
    assert validated(artifact, source).target == "onnx:int8_static"
