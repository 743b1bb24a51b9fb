"""Memory on the device in a validation: measured where that is asked for, or said why not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import qconv
import qconv.model
from qconv.cli._run import run
from qconv.errors import NotEnoughResources
from qconv.memory import VramResult
from qconv.validation import _vram
from qconv.validation._vram import asks_to_measure
from validation.damage import model_at, validated


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return model_at(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def gguf(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    return qconv.convert(source, "gguf:q8_0", out=out).artifacts[0].files[0]


@pytest.fixture
def measured(monkeypatch) -> list[dict[str, object]]:
    """Measurements that find 5 MB; how they were asked for."""
    asked = []

    def measure(path, **options):
        asked.append(options)
        predicted = _vram.predict_artifact(path, context=options["context"])
        figures = {"max_memory_allocated": 4_000_000}
        result = replace(predicted, low=1, high=4_000_000, runtime="llama.cpp")
        result = result.beside(5_000_000, device="cuda:0", by="a card", figures=figures)
        return SimpleNamespace(result=result)

    monkeypatch.setattr(_vram, "measure", measure)
    return asked


@pytest.fixture
def unmeasurable(monkeypatch) -> None:
    def measure(path, **options):
        raise NotEnoughResources("the process ended with -9 (Killed)")

    monkeypatch.setattr(_vram, "measure", measure)


def vram_gate(result):
    return next(each for each in result.gates if each.name == "vram")


def test_an_engine_is_measured_beside_its_prediction(source, gguf):
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'qconv[llama-cpp]'")
    options = {"windows": 2, "window_length": 16, "device": "cpu", "context": 64}
    result = validated(gguf, source, depth="runtime", measure=True, gates={"vram": 1e9}, **options)
    assert result.vram.measured > 0
    assert result.vram.error is not None
    assert result.vram.by.startswith("process memory of llama.cpp")
    assert result.runtimes[0].peak_bytes == result.vram.measured
    gate = vram_gate(result)
    assert (gate.status, gate.value) == ("pass", result.vram.measured)
    assert gate.why.startswith("as asked for; measured on cpu by process memory of llama.cpp")


def test_what_was_measured_is_judged_told_and_written(source, gguf, measured, tmp_path, capsys):
    words = ["validate", str(gguf), "--against", str(source), "--depth", "bytes", "--measure"]
    words += ["--gate", "vram=4MB", "--device", "cuda:0", "--report", str(tmp_path / "report")]
    assert run(words) == 6
    assert measured == [{"context": 4096, "device": "cuda:0"}]
    said = capsys.readouterr().out
    assert "measured on cuda:0: 5.0 MB, 1.0 MB above the range (by a card)" in said
    assert "max_memory_allocated  4.0 MB" in said
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    (artifact,) = document["artifacts"]
    vram = artifact["vram"]
    assert (vram["measured"], vram["error"], vram["by"]) == (5_000_000, 1_000_000, "a card")
    assert vram["figures"] == {"max_memory_allocated": 4_000_000}
    gate = next(each for each in artifact["gates"] if each["name"] == "vram")
    assert (gate["status"], gate["value"]) == ("fail", 5_000_000)
    assert gate["why"] == "as asked for; measured on cuda:0 by a card"
    assert "--measure" in document["command"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Memory, measured" in page
    assert "1.0 MB above" in page


def test_without_measuring_the_upper_end_of_the_prediction_is_judged(source, gguf, measured):
    result = validated(gguf, source, gates={"vram": 8e9})
    assert measured == []
    assert vram_gate(result).why == "as asked for; predicted, the upper end"
    assert vram_gate(result).value == result.vram.high


def test_a_failed_measurement_is_unmeasured_and_nothing_else_is_lost(source, gguf, unmeasurable):
    result = validated(gguf, source, measure=True, gates={"vram": 8e9})
    reason = "memory cannot be measured: the process ended with -9 (Killed)"
    assert (vram_gate(result).status, vram_gate(result).why) == ("unmeasured", reason)
    assert result.vram.reason == reason
    assert result.vram.measured is None
    assert result.tensors
    assert result.status == "unmeasured"


def test_where_nobody_asked_what_is_predicted_stands_for_a_failed_measurement(gguf, unmeasurable):
    asked = {"context": 64, "device": "cpu", "measured": True}
    found, unknown = _vram.device_memory(gguf, **asked, asked=False)
    assert (found.measured, found.reason, unknown) == (None, None, "")
    told = "memory cannot be measured: the process ended with -9 (Killed)"
    assert found.assumptions[-1] == told


def test_a_measurement_asked_for_that_fails_is_exit_code_6(source, gguf, unmeasurable, capsys):
    words = ["validate", str(gguf), "--against", str(source), "--depth", "bytes"]
    assert run([*words]) == 0
    assert run([*words, "--measure"]) == 6
    assert "unmeasured: memory cannot be measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "depth", "device", "expected"),
    [
        (None, "runtime", "cuda", True),
        (None, "runtime", "cpu", False),
        (None, "model", "cuda", False),
        (False, "runtime", "cuda", False),
        (True, "bytes", "cpu", True),
    ],
)
def test_at_depth_runtime_on_cuda_memory_is_measured_unasked(
    asked, depth, device, expected, monkeypatch
):
    monkeypatch.setattr(qconv.model, "resolve_device", torch.device)
    assert asks_to_measure(asked, depth, device) is expected


def test_a_device_that_is_not_there_is_told_elsewhere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert asks_to_measure(None, "runtime", "cuda") is False


def test_what_was_measured_lies_inside_above_or_below_the_range():
    predicted = VramResult(
        low=10, high=20, context=1, batch=1, cache_type="f16", runtime="llama.cpp", parts={}
    )

    def place(nbytes: int) -> str:
        return predicted.beside(nbytes, device="cpu", by="a card", figures={}).place(str)

    assert [place(n) for n in (10, 20)] == ["inside the range", "inside the range"]
    assert [place(n) for n in (7, 25)] == ["3 below the range", "5 above the range"]
