"""``qconv compare`` as people see it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from comparison.made import answer, comparison, silent, spoken

SCHEMA = Path(__file__).parents[2] / "schemas" / "comparison.schema.json"


@pytest.fixture
def compared(monkeypatch):
    """Puts a made-up comparison in place of a real one; gives what it was asked."""
    asked = {}

    def put(made):
        def compare(artifacts, **kwargs):
            asked.update(kwargs, artifacts=artifacts)
            return made

        monkeypatch.setattr("qconv.comparison.compare", compare)
        return asked

    return put


def test_texts_stand_under_one_another_with_their_parting(qconv_cli, compared):
    asked = compared(
        comparison(spoken("toy"), spoken("other.gguf", answer(" Paris, a river\n\x1b[2J", at=10)))
    )
    ran = qconv_cli("compare", "toy", "other.gguf", "--prompt", "The capital", "--tokens", "24")
    assert ran.code == 0
    assert asked["prompts"] == ["The capital"]
    assert asked["tokens"] == 24
    lines = ran.out.splitlines()
    assert lines[0].split() == ["artifact", "size", "engine", "ready", "in", "tokens/s", "memory"]
    assert lines[1].split() == [
        *("toy", "200.0", "MB", "llama.cpp", "1.2", "1.5", "s", "12.0", "450.0", "MB")
    ]
    assert lines[4:] == [
        '"The capital"',
        "  toy  (6 tokens, 0.5 s)",
        "    |  Paris, a city.",
        "  other.gguf  (6 tokens, 0.5 s, parts at token 4)",
        "    |  Paris, a >>river",
        "    | \\x1b[2J",
    ]


def test_what_is_on_a_terminal_is_in_reverse_from_the_parting_on(monkeypatch, qconv_cli, compared):
    compared(comparison(spoken("toy"), spoken("other", answer(" Paris, a river\nbed", at=10))))
    monkeypatch.setattr("qconv.cli._render_comparison._is_terminal", lambda: True)
    out = qconv_cli("compare", "toy", "other", "--prompt", "The capital").out
    assert "    |  Paris, a \x1b[7mriver\x1b[0m\n    | \x1b[7mbed\x1b[0m\n" in out


def test_long_lines_are_folded(qconv_cli, compared):
    compared(comparison(spoken("toy", answer("word " * 60)), spoken("other")))
    out = qconv_cli("compare", "toy", "other", "--prompt", "The capital").out
    assert max(map(len, out.splitlines())) <= 104
    assert out.count("word") == 60


def test_an_unmeasured_artifact_is_exit_code_6(qconv_cli, compared):
    odd = answer(tokenized_alike=False)
    compared(comparison(spoken("toy"), silent("b.onnx"), spoken("other", odd)))
    ran = qconv_cli("compare", "toy", "b.onnx", "other", "--prompt", "The capital")
    assert ran.code == 6
    assert "unmeasured: b.onnx: no engine: pip install it" in ran.out
    assert "whose tokenizer reads the prompt otherwise" in ran.out


def test_json_satisfies_its_schema(qconv_cli, compared):
    made = comparison(spoken("toy"), silent())
    compared(made)
    ran = qconv_cli("compare", "toy", "silent", "--prompt", "The capital", "--json")
    assert ran.code == 6
    document = json.loads(ran.out)
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert document["artifacts"][0]["answers"][0]["text"] == " Paris, a city."
    assert document["artifacts"][1]["reason"] == "no engine: pip install it"


def test_prompts_come_from_a_file_too(qconv_cli, compared, tmp_path):
    asked = compared(comparison(spoken("toy"), spoken("other")))
    (tmp_path / "prompts.txt").write_text("One\n\nTwo\n")
    given = ("--prompt", "Zero", "--prompt-file", str(tmp_path / "prompts.txt"))
    assert qconv_cli("compare", "toy", "other", *given).code == 0
    assert asked["prompts"] == ["Zero", "One", "Two"]


def test_a_prompt_file_must_hold_text(qconv_cli, tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, says in (
        ("blank.txt", "holds no text; write one prompt on each line"),
        ("binary", "give a file of UTF-8 text"),
        ("missing", "cannot be read"),
    ):
        ran = qconv_cli("compare", "a", "b", "--prompt-file", str(tmp_path / name))
        assert ran.code == 2
        assert says in ran.err


def test_one_artifact_is_no_comparison(qconv_cli):
    ran = qconv_cli("compare", "a.gguf", "--prompt", "The capital")
    assert ran.code == 2
    assert "a.gguf alone cannot be compared; name two artifacts or more" in ran.err


def test_prompts_may_be_messages_of_a_user(qconv_cli, compared):
    asked = compared(comparison(spoken("toy"), spoken("other")))
    assert qconv_cli("compare", "toy", "other", "--prompt", "Hi", "--chat").code == 0
    assert asked["chat"] is True
    assert asked["command"] == "qconv compare toy other --prompt Hi --chat --tokens 64"


def test_a_report_is_written(qconv_cli, compared, tmp_path):
    compared(comparison(spoken("toy"), spoken("other", answer(" Paris, a river", at=10))))
    options = ("--prompt", "The capital", "--report", str(tmp_path / "r"))
    ran = qconv_cli("compare", "toy", "other", *options)
    assert f"report: {tmp_path / 'r' / 'comparison.html'}" in ran.err
    page = (tmp_path / "r" / "comparison.html").read_text()
    assert " Paris, a <mark>river</mark>" in page
    assert json.loads((tmp_path / "r" / "comparison.json").read_text())["tokens"] == 24
