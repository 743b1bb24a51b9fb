"""The benchmark scripts run, and report what the README quotes. No speed is asserted here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
