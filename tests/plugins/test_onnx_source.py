"""An ``.onnx`` file as a model: its graph is kept, its products get quantized weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_sources import cnn, decoded, mlp, run, save, values

import qconv

#: What inputs rounded to 8 bits move outputs by, of their size; where none are, float32 rounding.
_ROUNDED, _EXACT = 0.02, 1e-5


def _converted(path: Path, target: str, out: Path) -> Path:
    made = qconv.convert(path, to=f"onnx:{target}", out=out, threads=1)
    (graph,) = (each for each in made.artifacts[0].files if each.name == "model.onnx")
    return graph.parent


def _off(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("target", ["w8,accuracy_level=1", "int4,accuracy_level=1", "w8a8"])
def test_an_mlp_computes_with_its_decoded_weights(tmp_path, target, external):
    model = mlp()
    path = save(model, tmp_path / "mlp", external=external)
    artifact = _converted(path, target, tmp_path / "out")
    x = values(5, 64, seed=1)
    wanted = run(decoded(model, artifact), x)
    assert _off(run(artifact / "model.onnx", x), wanted) < (
        _ROUNDED if target == "w8a8" else _EXACT
    )
    assert 0.0005 < _off(wanted, run(model, x)) < 0.3


@pytest.mark.parametrize("target", ["w8,accuracy_level=1", "int4,accuracy_level=1", "w8a8"])
def test_a_cnn_computes_with_its_decoded_weights(tmp_path, target):
    model = cnn()
    artifact = _converted(save(model, tmp_path / "cnn"), target, tmp_path / "out")
    x = values(3, 3, 16, 16, seed=1)
    wanted = run(decoded(model, artifact), x)
    assert _off(run(artifact / "model.onnx", x), wanted) < (
        _ROUNDED if target == "w8a8" else _EXACT
    )
    assert 0.0005 < _off(wanted, run(model, x)) < 0.1
