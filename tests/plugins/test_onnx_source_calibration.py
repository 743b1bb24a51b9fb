"""Statistics of an ``.onnx`` source, from running it in onnxruntime."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_sources import cnn, decoded, graph, mlp, run, save, values

import qconv
from qconv._graphs import graph_passes
from qconv._host import load_plugins
from qconv.checkpoint import open_checkpoint
from qconv.errors import BrokenPlugin, UnreadableInput, Unsupported, UsageError
from qconv_onnx._backend import OnnxBackend

RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return save(mlp(), tmp_path_factory.mktemp("source") / "mlp", external=True)


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    """Some channels are far larger than others, and many go together."""
    mixed = RNG.standard_normal((256, 12)) @ RNG.standard_normal((12, 64))
    return (mixed * np.geomspace(0.05, 5, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def samples(tmp_path_factory, inputs) -> Path:
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    np.savez(path, x=inputs[:192])
    return path


def _lost(source: Path, made: qconv.Conversion, inputs: np.ndarray) -> float:
    """Of the decoded weights, on inputs that were not calibrated on."""
    model = mlp()
    wanted = run(model, inputs[192:])
    found = run(decoded(model, made.artifacts[0].files[0].parent), inputs[192:])
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("external", [False, True])
def test_statistics_are_of_what_each_weight_is_multiplied_with(tmp_path, inputs, external):
    path = save(mlp(), tmp_path, external=external)
    backend = OnnxBackend()
    with open_checkpoint(path) as opened:
        taken = backend.graph_inputs(opened.model)
        assert {name: (each.shape, each.dtype) for name, each in taken.items()} == {
            "x": ((None, 64), "float32")
        }
        places = {name: opened.place(name) for name in opened.model.tensors}
        (seen,) = backend.observe(opened.model, places, [{"x": inputs[:5]}])
    rows = {weight: each.rows.numpy() for each in seen for weight in each.weights}
    assert set(rows) == {"first", "second", "third", "fourth"}
    assert np.array_equal(rows["first"], inputs[:5])
    stored = {each.name: numpy_helper.to_array(each) for each in mlp().graph.initializer}
    assert np.allclose(rows["second"], np.maximum(inputs[:5] @ stored["first"], 0), atol=1e-4)


def test_gptq_on_samples_loses_less_than_rounding(tmp_path, source, samples, inputs):
    plain = qconv.convert(source, to="onnx:int4", out=tmp_path / "rtn", threads=1)
    better = qconv.convert(
        source, to="onnx:int4", method="gptq", calibration=samples, out=tmp_path / "gptq", threads=1
    )
    assert _lost(source, better, inputs) < 0.8 * _lost(source, plain, inputs)
    assert better.to_json()["calibration"]["windows"] == 64


def test_importance_from_samples_loses_less_than_none(tmp_path, source, samples, inputs):
    plain = qconv.convert(source, to="onnx:int4", out=tmp_path / "plain", threads=1)
    better = qconv.convert(
        source, to="onnx:int4", calibration=samples, out=tmp_path / "with", threads=1
    )
    assert _lost(source, better, inputs) < _lost(source, plain, inputs)


def test_static_scales_come_from_samples(tmp_path, source, samples, inputs):
    with pytest.raises(Unsupported, match="no calibration saw that input; give --calibration"):
        qconv.convert(source, to="onnx:int8_static", out=tmp_path, threads=1)
    made = qconv.convert(
        source, to="onnx:int8_static", calibration=samples, out=tmp_path, threads=1
    )
    artifact = made.artifacts[0].files[0].parent
    wanted = run(decoded(mlp(), artifact), inputs[192:])
    found = run(artifact / "model.onnx", inputs[192:])
    assert np.linalg.norm(found - wanted) < 0.08 * np.linalg.norm(wanted)


def test_equal_samples_give_equal_bytes(tmp_path, source, samples):
    files = []
    for name in ("once", "again"):
        made = qconv.convert(
            source, to="onnx:int4", method="gptq", calibration=samples, out=tmp_path / name
        )
        files.append([path.read_bytes() for path in sorted(made.artifacts[0].files)])
    assert files[0] == files[1]


def test_a_cnn_is_calibrated_where_it_multiplies(tmp_path):
    path = save(cnn(), tmp_path / "cnn")
    np.savez(tmp_path / "images.npz", x=values(6, 3, 16, 16))
    made = qconv.convert(
        path,
        to="onnx:w8",
        method="gptq",
        calibration=tmp_path / "images.npz",
        out=tmp_path,
        threads=1,
    )
    x = values(3, 3, 16, 16, seed=1)
    artifact = made.artifacts[0].files[0].parent
    wanted = run(cnn(), x)
    assert np.linalg.norm(run(artifact / "model.onnx", x) - wanted) < 0.02 * np.linalg.norm(wanted)


def _refused(source: Path, samples: Path, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        qconv.convert(
            source, to="onnx:int4", calibration=samples, out=samples.parent / "out", threads=1
        )


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"y": np.zeros((4, 64))}, "has no array 'x'; the graph takes x"),
        ({"x": np.zeros((4, 63))}, r"has shape \(4, 63\), but the graph takes \('any', 64\)"),
        ({"x": np.zeros((4, 64, 1))}, r"has shape \(4, 64, 1\), but the graph takes"),
        ({"x": np.zeros((0, 64))}, "must hold equally many samples, 1 or more"),
        ({"x": np.full((4, 64), np.nan)}, "holds NaN or infinite values; leave them out"),
        ({"x": np.zeros((4, 64), complex)}, "is complex128, but the graph takes float32"),
    ],
)
def test_arrays_that_are_not_the_inputs_are_refused(tmp_path, source, arrays, match):
    np.savez(tmp_path / "bad.npz", **arrays)
    _refused(source, tmp_path / "bad.npz", UsageError, match)


def test_a_file_that_is_no_arrays_is_unreadable(tmp_path, source):
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    _refused(
        source, tmp_path / "bad.npz", UnreadableInput, "holds no arrays of numbers; write them"
    )
    _refused(source, tmp_path / "none.npz", UnreadableInput, "none.npz: cannot be read: ")
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    _refused(source, tmp_path / "pickled.npz", UnreadableInput, "holds no arrays of numbers")


def test_text_is_refused_for_a_graph_that_takes_no_token_ids(tmp_path, source):
    (tmp_path / "text.txt").write_text("words " * 100)
    _refused(
        source,
        tmp_path / "text.txt",
        UsageError,
        "the graph takes x, which text is not made into; give --calibration FILE.npz",
    )


@pytest.mark.parametrize("method", ["awq", "smoothquant", "signround"])
def test_steps_that_need_blocks_are_refused(tmp_path, source, samples, method):
    with pytest.raises(Unsupported, match=f"method '{method}' works on the blocks of a model"):
        qconv.plan(source, to="onnx:int4", method=method, calibration=samples)


def test_a_sample_that_the_graph_does_not_take_is_named(tmp_path):
    made = mlp()
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "anything"
    path = save(made, tmp_path / "loose")
    np.savez(tmp_path / "bad.npz", x=np.zeros((4, 63), np.float32))
    _refused(path, tmp_path / "bad.npz", UnreadableInput, "onnxruntime cannot run sample 0")


def test_an_input_that_is_text_is_refused(tmp_path, samples):
    made = mlp()
    made.graph.input.append(helper.make_tensor_value_info("words", TensorProto.STRING, ["n"]))
    path = save(made, tmp_path / "words")
    _refused(path, samples, Unsupported, "input 'words' of the graph is no tensor of numbers")


def _twice() -> ModelProto:
    """``shared`` is multiplied with two values, of which ``other`` is multiplied with one."""
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], ["a"]),
        helper.make_node("MatMul", ["x", "other"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "shared"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "last"], ["y"]),
    ]
    weights = {
        "shared": values(64, 64),
        "other": values(64, 64, seed=1),
        "last": values(64, 64, seed=2),
    }
    return graph(nodes, weights, {"x": ["n", 64]}, {"y": ["n", 64]})


def test_a_weight_in_two_places_has_the_statistics_of_both_inputs(tmp_path, samples, inputs):
    path = save(_twice(), tmp_path / "twice")
    host = load_plugins()
    made, chain = qconv.plan(path, to="onnx:int4", method="gptq"), host.resolve_chain("gptq")
    with open_checkpoint(path) as opened:
        settings = qconv.Calibration(source=samples)
        passes = graph_passes(opened, settings, chain, [host.backend("onnx")], made)
        saved = passes.saved
    assert (saved["other"].tokens, saved["shared"].tokens) == (64, 128)
    assert (saved["shared"].abs_max >= saved["other"].abs_max).all()
    weights = {each.name: numpy_helper.to_array(each) for each in _twice().graph.initializer}
    first = saved["other"].sample
    second = np.maximum(first.numpy() @ (weights["shared"] + weights["other"]), 0)
    both = first.square().sum(0).double().numpy() + np.square(second).sum(0)
    assert np.allclose(saved["shared"].square_sum, both, rtol=1e-4)


def test_a_weight_in_two_places_is_calibrated(tmp_path, samples, inputs):
    path = save(_twice(), tmp_path / "twice")
    wanted = run(_twice(), inputs[192:])

    def lost(target: str, **options) -> float:
        made = qconv.convert(path, to=target, out=tmp_path, threads=1, force=True, **options)
        assert not any("no statistics" in each for each in made.notes)
        found = run(decoded(_twice(), made.artifacts[0].files[0].parent), inputs[192:])
        return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))

    plain = lost("onnx:int4")
    assert lost("onnx:int4", method="gptq", calibration=samples) < 0.8 * plain
    assert lost("onnx:int8_static", calibration=samples) < 0.05


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_weights_that_no_statistics_tell_of_are_named(tmp_path, method):
    path = save(cnn(), tmp_path / "cnn")
    np.savez(tmp_path / "images.npz", x=values(6, 3, 16, 16))
    made = qconv.convert(
        path,
        to="onnx:w8",
        method=method,
        calibration=tmp_path / "images.npz",
        out=tmp_path,
        threads=1,
    )
    (note,) = [each for each in made.notes if "no statistics" in each]
    assert note.startswith("3 quantized weights (c1, c2, c3) have no statistics of their inputs")
    assert "rounded as without calibration" in note


def test_an_onnxruntime_that_is_missing_is_told_with_what_to_install(
    tmp_path, source, samples, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    _refused(source, samples, BrokenPlugin, r"^onnxruntime cannot be imported: .*'qconv\[onnx\]'")
