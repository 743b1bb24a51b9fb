"""The benchmark scripts run, and report what the README quotes. No speed is asserted here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import whole

BENCH = Path(__file__).parent / "bench"


def test_the_encoding_benchmark_reports_speed_and_error():
    pytest.importorskip("xllamacpp", reason="pip install 'qconv[llama-cpp]'")
    command = [sys.executable, BENCH / "encode.py", "--types", "q8_0", "--turns", "1", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["importance"] for row in rows] == [False, True]
    for row in rows:
        speeds = row["qconv_weights_per_second"] / row["ggml_weights_per_second"]
        assert row["speed_ratio"] == pytest.approx(speeds)
        assert 0 < row["mean_error_ratio"] <= row["largest_error_ratio"] <= 1.02


@pytest.mark.parametrize(
    ("targets", "contenders"),
    [
        (["gguf:q4_k_m"], ["qconv", "qconv unchecked", "llama.cpp"]),
        (["safetensors:int4"], ["qconv", "qconv unchecked", "llm-compressor", "gptqmodel"]),
        (
            ["safetensors:int4", "safetensors:awq"],
            [
                "qconv safetensors:int4",
                "qconv safetensors:int4 unchecked",
                "qconv safetensors:awq",
                "qconv safetensors:awq unchecked",
                "llm-compressor",
                "gptqmodel",
            ],
        ),
    ],
)
def test_peers_are_measured_beside_their_own_formats(targets, contenders, monkeypatch):
    peers = ["--convert", "convert.py", "--quantize", "llama-quantize"]
    pythons = ["--llm-compressor", "python3", "--gptqmodel", "python3"]
    monkeypatch.setattr(sys, "argv", ["whole.py", "--to", *targets, *peers, *pythons])
    assert list(whole.commands(whole.parse(), Path("work"))) == contenders


def test_ratios_are_given_to_every_peer(capsys):
    figures = {
        "qconv": whole.Figures(wall=1, cpu=1, peak_mb=500),
        "llm-compressor": whole.Figures(wall=4, cpu=2, peak_mb=1000),
        "gptqmodel": whole.Figures(wall=8, cpu=10, peak_mb=2000),
    }
    whole.report(figures, as_json=False)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "qconv / llm-compressor: wall 0.250, CPU 0.500, peak 0.500",
        "qconv / gptqmodel: wall 0.125, CPU 0.100, peak 0.250",
    ]
