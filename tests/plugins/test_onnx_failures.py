"""What users read when a model does not export, or a graph does not open."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from onnx import TensorProto, helper

from qconv.errors import BrokenPlugin, UnreadableInput, Unsupported
from qconv_onnx import _session
from qconv_onnx._failures import summary
from qconv_onnx._onnxruntime import OnnxRuntime
from qconv_onnx._session import open_session


class Decomposes(torch.nn.Module):
    """Calls an operator that ONNX has nothing for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigh(x)[1]


class Decides(torch.nn.Module):
    """Takes a way that hangs on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else x * 2


class Holds(torch.nn.Module):
    """Has another in a list."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([inner])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x) + 1


@pytest.mark.filterwarnings("ignore")
def _failure(module: torch.nn.Module) -> str:
    arguments = (torch.randn(3, 3),)
    try:
        torch.onnx.export(module, arguments, dynamo=True, optimize=False, verbose=False)
    except Exception as error:  # noqa: BLE001 -- of whatever class the exporter has it
        return summary(error, lambda: torch.export.export(module, arguments, strict=False))
    raise AssertionError("it was exported")


@pytest.mark.filterwarnings("ignore")
def test_an_operator_without_onnx_is_named_with_its_module():
    assert _failure(Holds(Decomposes())) == (
        "torch has no ONNX for operator aten._linalg_eigh, which layers.0 (Decomposes) calls"
    )


@pytest.mark.filterwarnings("ignore")
def test_a_way_that_hangs_on_values_is_told_with_its_line():
    told = _failure(Holds(Decides()))
    assert "data-dependent" in told
    assert "(test_onnx_failures.py, line " in told
    assert "\n" not in told


def _graph(folder: Path, operator: str, *, domain: str = "", opset: int = 21, ir: int = 10) -> Path:
    (x, y) = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, 1)] if domain else []
    model = helper.make_model(
        helper.make_graph([node], "graph", [x], [y]), opset_imports=imports, ir_version=ir
    )
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return file


def test_a_sound_graph_opens(tmp_path):
    session = open_session(_graph(tmp_path, "Relu"))
    assert session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"operator": "Relu", "opset": 99}, r"opset 99, and onnxruntime \S+ knows opsets up to \d"),
        ({"operator": "Relu", "ir": 99}, r"IR version 99, and onnxruntime \S+ reads up to \d"),
        (
            {"operator": "Foo", "domain": "com.acme"},
            "'Foo' of domain 'com.acme' .* custom operators are never loaded",
        ),
        (
            {"operator": "Foo", "domain": "com.microsoft"},
            "'Foo' of domain 'com.microsoft' .* --upgrade onnxruntime",
        ),
        ({"operator": "Foo"}, "'Foo' of opset 21 is unknown to onnxruntime"),
    ],
    ids=str,
)
def test_what_onnxruntime_does_not_know_is_named(tmp_path, graph, message):
    with pytest.raises(Unsupported, match=message):
        open_session(_graph(tmp_path, **graph))


def test_a_file_that_is_no_graph_is_unreadable(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(UnreadableInput, match="refuses it"):
        open_session(tmp_path / "model.onnx")


def test_an_artifact_that_onnxruntime_is_too_old_for_is_unsupported(tmp_path):
    _graph(tmp_path, "Relu", opset=99)
    with pytest.raises(Unsupported, match=r"model.onnx: it is of opset 99, and onnxruntime"):
        OnnxRuntime(tmp_path)


def test_an_artifact_without_a_tokenizer_is_told_so(tmp_path):
    _graph(tmp_path, "Relu")
    with pytest.raises(UnreadableInput, match="transformers cannot read its tokenizer: .*; put"):
        OnnxRuntime(tmp_path)


def test_two_builds_in_one_place_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.32.0")
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.32.0"))
    with pytest.raises(BrokenPlugin, match="are both installed, and each overwrites files"):
        open_session(tmp_path / "model.onnx")


def test_an_onnxruntime_that_was_overwritten_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.32.0"))
    with pytest.raises(BrokenPlugin, match="onnxruntime is empty; install it anew"):
        open_session(tmp_path / "model.onnx")


def test_an_onnxruntime_that_is_missing_is_told_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BrokenPlugin, match=r"pip install 'qconv\[onnx\]'"):
        open_session(tmp_path / "model.onnx")


class Cuda:
    """An onnxruntime with CUDA, of which sessions on the GPU fail."""

    __version__ = "1.32.0"
    opened: ClassVar[list[str]] = []

    @staticmethod
    def get_available_providers() -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    class InferenceSession:
        def __init__(self, _file, _options, *, providers, enable_fallback=1):
            self.providers = [each if isinstance(each, str) else each[0] for each in providers]
            Cuda.opened.append(self.providers[0])
            if "CUDAExecutionProvider" in self.providers:
                assert not enable_fallback, "onnxruntime goes on on the CPU"
                raise RuntimeError("CUDA failure 101: invalid device ordinal ; GPU=7")

        def get_providers(self) -> list[str]:
            return self.providers


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(Cuda, "opened", [])
    monkeypatch.setattr(_session, "_runtime", lambda: Cuda)
    monkeypatch.setattr(_session, "plain_options", lambda: None)
    monkeypatch.setattr(_session, "_sees_cuda", lambda: True)
    return Cuda


def test_a_device_that_fails_is_told_in_the_words_of_onnxruntime(cuda):
    told = r"does not open it on cuda:7: CUDA failure 101: invalid device ordinal ; GPU=7; choose"
    with pytest.raises(BrokenPlugin, match=told):
        open_session(b"", name="graph", device="cuda:7")
    assert cuda.opened == ["CUDAExecutionProvider"]


def test_what_fails_on_a_device_that_was_not_asked_for_opens_on_the_cpu(cuda):
    assert open_session(b"", device="auto").get_providers() == ["CPUExecutionProvider"]
    assert cuda.opened == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_the_cpu_is_opened_without_torch(cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(_session, "_sees_cuda", None)
    assert open_session(b"", device="cpu").get_providers() == ["CPUExecutionProvider"]


def test_only_ever_one_onnxruntime_is_asked_for():
    from packaging.requirements import Requirement

    wanted = [Requirement(each) for each in importlib.metadata.requires("qconv") or ()]
    markers = {
        each.name: each.marker
        for each in wanted
        if each.name.startswith("onnxruntime") and "dev" not in str(each.marker)
    }
    assert set(markers) == {"onnxruntime", "onnxruntime-gpu"}
    for system in ("linux", "win32", "darwin"):
        for machine in ("x86_64", "AMD64", "aarch64", "arm64", "ARM64"):
            place = {"sys_platform": system, "platform_machine": machine, "extra": "onnx"}
            chosen = [name for name, marker in markers.items() if marker.evaluate(place)]
            assert len(chosen) == 1, (system, machine)
