"""The ONNX benchmark runs, and its parts are what the README quotes. No speed is asserted here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))
sys.path.insert(0, str(Path(__file__).parent / "bench" / "peers"))

import onnx_methods
import onnx_runtime
import onnx_session
import onnx_whole
from whole import Figures

BENCH = Path(__file__).parent / "bench"


def test_the_scaling_case_reports_every_contender():
    pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
    command = [sys.executable, BENCH / "onnx_whole.py", "--scale", "40", "--runs", "1", "--json"]
    done = subprocess.run([*command, "--threads", "1"], check=True, capture_output=True, text=True)
    (found,) = json.loads(done.stdout.splitlines()[-1]).values()
    assert set(found) == {"float32", "qconv w8a8", "qconv int4", "onnxruntime dynamic"}
    sizes = {name: each["size_mb"] for name, each in found.items()}
    assert sizes["qconv int4"] < sizes["qconv w8a8"] < 0.3 * sizes["float32"]
    assert all(each["figures"]["peak_mb"] > 50 for name, each in found.items() if "32" not in name)


def test_divergence_of_logits_is_in_nats_and_that_of_states_a_cosine():
    logits = [np.log(np.array([[0.5, 0.25, 0.25] + [1e-12] * 4096]))]
    other = [np.log(np.array([[0.25, 0.5, 0.25] + [1e-12] * 4096]))]
    expected = 0.5 * np.log(2) + 0.25 * np.log(0.5)
    assert onnx_session.divergence(logits, other) == pytest.approx(expected, abs=1e-6)
    states = [np.array([[1.0, 0.0], [0.0, 2.0]])]
    turned = [np.array([[0.0, 1.0], [0.0, 1.0]])]
    assert onnx_session.divergence(states, turned) == pytest.approx(0.5)


def test_weights_that_are_transposed_are_stored_so_for_peers_that_want_it():
    from onnx import TensorProto, helper, numpy_helper

    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"]),
        ],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph)
    onnx_whole.fold_transposes(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    (stored,) = model.graph.initializer
    assert stored.name == "t"
    assert np.array_equal(numpy_helper.to_array(stored), weight.T)


def test_ratios_leave_out_what_was_not_measured():
    ours = onnx_whole.Result(figures=Figures(wall=1, cpu=1, peak_mb=100), size_mb=5, lost=0.01)
    theirs = onnx_whole.Result(figures=Figures(wall=4, cpu=2, peak_mb=400), size_mb=10, lost=0.04)
    assert onnx_whole.ratios(ours, theirs) == (
        "wall 0.250, CPU 0.500, peak 0.250, size 0.500, lost 0.250"
    )


def test_a_peer_that_is_not_given_is_left_out_with_a_note(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["onnx_whole.py", "--models", str(tmp_path / "m")])
    options = onnx_whole.parse()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    graph = tmp_path / "work" / "m-ONNX-FP32" / "model.onnx"
    found = onnx_whole._commands(options, tmp_path / "m", graph, tmp_path)
    assert "olive: left out, as no --olive PYTHON was given" in capsys.readouterr().err
    assert [name for name in found if not name.startswith("qconv")] == [
        "onnxruntime dynamic",
        "onnxruntime static",
    ]


def test_static_peers_are_calibrated_window_by_window(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["n", 3])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    np.savez(tmp_path / "c.npz", x=np.arange(6).reshape(2, 3), other=np.zeros(2))
    windows = onnx_runtime.Windows(tmp_path / "c.npz", tmp_path / "model.onnx")
    assert [each["x"].tolist() for each in windows] == [[[0, 1, 2]], [[3, 4, 5]]]
    assert windows.get_next() is None


def test_methods_are_set_against_quantize_dynamic_or_plain_rounding():
    lost = {
        onnx_methods.DYNAMIC: 0.8,
        "w8a8, rtn": 0.08,
        "int4, rtn": 0.5,
        "int4, gptq": 0.25,
    }
    assert onnx_methods.ratios(lost) == {
        "w8a8, rtn / onnxruntime dynamic": pytest.approx(0.1),
        "int4, gptq / int4, rtn": 0.5,
    }
