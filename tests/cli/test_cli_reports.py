"""``qconv validate`` with a report, and with text in it."""

from __future__ import annotations

import json

import pytest

import qconv
from comparison.made import answer, comparison, silent, spoken
from qconv.reports import read_report
from reports.results import artifact, validation


@pytest.fixture
def validated(monkeypatch):
    """A made-up validation of two artifacts in place of a real one; gives what it was asked."""
    asked = {}
    made = validation(artifact("gguf:q8_0", samples=()), artifact("gguf:q2_k", samples=()))

    def validate(artifacts, against, **kwargs):
        asked.update(kwargs)
        return made

    monkeypatch.setattr(qconv, "validate", validate)
    return asked


def test_a_report_is_written_where_it_is_asked_for(qconv_cli, validated, tmp_path):
    ran = qconv_cli("validate", "a", "b", "--against", "m", "--report", str(tmp_path / "r"))
    assert ran.code == 0
    assert f"report: {tmp_path / 'r' / 'report.html'}" in ran.err
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [
        "junit.xml",
        "report.html",
        "report.json",
    ]


def test_prompts_are_gone_on_with_by_all_and_shown(qconv_cli, validated, tmp_path, monkeypatch):
    asked = {}

    def compare(paths, *, prompts, device):
        asked["paths"], asked["prompts"] = [path.name for path in paths], prompts
        asked["device"] = device
        return comparison(
            spoken("m", answer(" Paris, a city")),
            spoken("a", answer(" Paris, a river")),
            silent("b"),
        )

    monkeypatch.setattr("qconv.comparison.compare", compare)
    options = ("--prompt", "The capital", "--device", "cpu", "--report", str(tmp_path), "--json")
    ran = qconv_cli("validate", "a", "b", "--against", "m", *options)
    assert asked == {"paths": ["m", "a", "b"], "prompts": ["The capital"], "device": "cpu"}
    assert "--prompt 'The capital'" in validated["command"]
    assert "warning: b wrote nothing: no engine: pip install it" in ran.err
    first, second = read_report(tmp_path / "report.json").artifacts
    assert second.samples == ()
    (sample,) = first.samples
    assert sample.texts == {"source": " Paris, a city", "gguf:q8_0": " Paris, a river"}
    assert sample.seconds == {"source": 0.5, "gguf:q8_0": 0.5}
    assert json.loads(ran.out)["artifacts"][0]["samples"][0]["prompt"] == "The capital"
    assert " Paris, a <mark>river</mark>" in (tmp_path / "report.html").read_text()
