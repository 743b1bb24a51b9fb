"""Calibrated chains to ONNX: codes arrive as computed, and sensitive layers are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_driver import decoded, run, session

import qconv
from calibration.tokenized import save_model, write_texts
from qconv.errors import Unsupported
from qconv.grids import ActivationGrid
from qconv_onnx._backend import OnnxBackend
from qconv_onnx._reader import OnnxReader

CHAINS = ["gptq", "awq", "smoothquant", "awq,gptq", "smoothquant,gptq"]
TARGETS = ["onnx:int4,accuracy_level=1", "onnx:w8,accuracy_level=1", "onnx:w8a8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose MLP has a few channels far above the others."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, hidden_size=64, intermediate_size=128, tie_word_embeddings=True)
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> qconv.Calibration:
    text = write_texts(tmp_path_factory.mktemp("text") / "text.jsonl", 12)
    return qconv.Calibration(source=text, windows=4, window_length=32)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, object]]:
    """Every value that came to the backend, by the format's name and the tensor's."""
    seen: dict[str, dict[str, object]] = {}
    encode = OnnxBackend.encode

    def keep(self, plan, value):
        seen.setdefault(plan.operator or "float", {})[plan.name] = value
        return encode(self, plan, value)

    monkeypatch.setattr(OnnxBackend, "encode", keep)
    return seen


@pytest.fixture(scope="module")
def exported() -> list[OnnxBackend]:
    """One backend for all conversions of this file: it keeps the graphs it exported."""
    return [OnnxBackend()]


@pytest.fixture(autouse=True)
def one_backend(monkeypatch: pytest.MonkeyPatch, exported: list[OnnxBackend]) -> None:
    import qconv_onnx

    monkeypatch.setattr(qconv_onnx, "_load", lambda: lambda: exported[0])


def _convert(model: Path, targets, out: Path, method: str, **options) -> list[Path]:
    made = qconv.convert(model, targets, out=out, method=method, device="cpu", **options)
    return [each.files[0].parent for each in made.artifacts]


def _ids(model: Path) -> np.ndarray:
    from transformers import AutoConfig

    size = AutoConfig.from_pretrained(model).vocab_size
    return np.random.default_rng(0).integers(0, size, (2, 9))


@pytest.mark.parametrize("method", CHAINS)
@pytest.mark.parametrize("target", TARGETS)
def test_codes_of_a_chain_arrive_as_computed(model, settings, encoded, tmp_path, method, target):
    (artifact,) = _convert(model, target, tmp_path, method, calibration=settings)
    values = {name: value for kind in encoded.values() for name, value in kind.items()}
    reader = OnnxReader(artifact)
    assert set(reader.tensors) == set(values)
    for name, value in values.items():
        expected = value.float() if isinstance(value, torch.Tensor) else value.dequantize()
        assert torch.equal(reader.read(name).reshape(expected.shape), expected), name
    ids = _ids(model)
    with torch.no_grad():
        expected = decoded(model, artifact)(torch.tensor(ids)).logits.numpy()
    found = run(session(artifact), ids)["logits"]
    rounds = "w8a8" in target  # inputs, too
    assert np.abs(found - expected).max() <= (0.2 if rounds else 1e-4) * np.abs(expected).max()


def test_a_chain_computes_other_codes_than_plain_rounding(model, settings, tmp_path):
    plain, *others = (
        _convert(model, "onnx:int4", tmp_path / method, method, **options)[0]
        for method, options in (
            ("rtn", {}),
            ("gptq", {"calibration": settings}),
            ("awq", {"calibration": settings}),
        )
    )
    name = "model.layers.1.mlp.up_proj.weight"
    weights = [OnnxReader(each).read(name) for each in (plain, *others)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_static_inputs_are_rounded_on_the_scales_of_calibration(model, settings, encoded, tmp_path):
    target = "onnx:int8_static,sensitive=none,accuracy_level=1"
    (artifact,) = _convert(model, target, tmp_path, "smoothquant", calibration=settings)
    torch_model = decoded(model, artifact)
    grid = ActivationGrid(symmetric=False, scope="tensor", dynamic=False)
    stated = OnnxReader(artifact).activation_parameters
    assert stated.keys() == encoded["static"].keys()
    for name, value in encoded["static"].items():
        module = torch_model.get_submodule(name.removesuffix(".weight"))
        static = dict(value.activation_parameters)
        assert list(static) == ["scale", "zero_point"]
        assert stated[name] == static  # tensors of one value
        module.register_forward_pre_hook(
            lambda _, args, static=static: grid.fake_quantize(args[0].flatten(0, 1), static).view(
                args[0].shape
            )
        )
    ids = _ids(model)
    with torch.no_grad():
        expected = torch_model(torch.tensor(ids)).logits.numpy()
    found = run(session(artifact), ids)["logits"]
    # A step at the edge of rounding may fall to either side; most do not.
    assert np.abs(found - expected).mean() <= 2e-3 * np.abs(expected).max()


def test_onnxruntime_multiplies_static_inputs_as_integers(model, settings, tmp_path):
    target = "onnx:int8_static,sensitive=none"
    (artifact,) = _convert(model, target, tmp_path, "rtn", calibration=settings)
    onnx.checker.check_model(artifact / "model.onnx", full_check=True)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        artifact / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    kinds = [
        node.op_type
        for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    ]
    linears = 7 * sum("input_layernorm" in each for each in OnnxReader(artifact).tensors)
    assert kinds.count("MatMulIntegerToFloat") == linears
    assert "DequantizeLinear" not in kinds


def test_static_inputs_need_calibration(model, tmp_path):
    with pytest.raises(Unsupported, match="no calibration saw that input; give --calibration"):
        _convert(model, "onnx:int8_static", tmp_path, "rtn")


def _operators(conversion) -> dict[str, str]:
    (target,) = conversion.plan.targets
    return {plan.name: plan.operator for plan in target.tensors.tensors if plan.operator}


@pytest.mark.parametrize("method", ["rtn", "smoothquant"])
def test_layers_whose_inputs_round_badly_are_found_by_measurement_and_listed(
    model, settings, tmp_path, method
):
    def convert(out: str, options: str):
        return qconv.convert(
            model,
            f"onnx:w8a8,{options}",
            out=tmp_path / out,
            method=method,
            device="cpu",
            calibration=settings,
        )

    everything = convert("all", "sensitive_above=0.000001")
    linears = [name for name in _operators(everything) if ".layers." in name]
    assert {_operators(everything)[name] for name in linears} == {"nbits"}
    reasons = {
        plan.name: plan.reason
        for plan in everything.plan.targets[0].tensors.tensors
        if plan.name in linears
    }
    assert all(
        "rounding its input would change its output by " in each for each in reasons.values()
    )
    errors = everything.plan.targets[0].request.input_errors
    head = "model.embed_tokens.weight"
    assert set(errors) == {*linears, head}
    assert _operators(everything)[head] == "nbits"
    errors = {name: error for name, error in errors.items() if name != head}
    *_, second, first = sorted(errors.values())
    limit = (first + second) / 2
    some = _operators(convert("some", f"sensitive_above={limit}"))
    worst = max(errors, key=lambda name: errors[name])
    assert [name for name in linears if some[name] == "nbits"] == [worst]
    nothing = _operators(convert("none", "sensitive=none"))
    assert {nothing[name] for name in linears} == {"integer"}


def test_a_plan_says_that_sensitive_layers_are_yet_to_be_found_or_never_are(model, settings):
    (later,) = qconv.plan(model, "onnx:w8a8", calibration=settings).warnings
    assert "which layers keep their inputs in float is measured when converting" in later
    (never,) = qconv.plan(model, "onnx:w8a8").warnings
    assert "give --calibration, e.g. --calibration builtin, to have it measured" in never
    assert not qconv.plan(model, "onnx:w8a8,sensitive=none").warnings


def test_layers_named_as_sensitive_keep_float_inputs(model, tmp_path):
    (artifact,) = _convert(model, "onnx:w8a8,sensitive=down_proj+self_attn.o_proj", tmp_path, "rtn")
    kinds = {name: info.dtype for name, info in OnnxReader(artifact).tensors.items()}
    by_blocks = {name for name, kind in kinds.items() if kind == "uint8_g32" and "layers" in name}
    assert by_blocks == {name for name in kinds if "down_proj" in name or "o_proj" in name}


def test_two_targets_of_one_run_export_the_graph_once(model, tmp_path, monkeypatch):
    from qconv_onnx import _backend

    monkeypatch.undo()  # a backend of its own
    exports = []
    export = _backend.export_graph

    def count(info, **options):
        exports.append(options)
        return export(info, **options)

    monkeypatch.setattr(_backend, "export_graph", count)
    _convert(model, ["onnx:int4", "onnx:w8a8"], tmp_path, "rtn")
    assert exports == [{"dtype": "float32", "kv_cache": True}]
