"""``qconv calibrate`` on a tiny model: what it prints, and how it refuses."""

from __future__ import annotations

import json
import re

import pytest

import qconv.cli.calibrate as command
from calibration.tokenized import save_model, write_texts
from qconv.calibration import load_calibration


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def line(folder, tmp_path):
    source = write_texts(tmp_path / "a.jsonl", 12)
    given = ("--calibration", str(source), "--windows", "6", "--window-length", "32")
    return ("calibrate", str(folder), "-o", str(tmp_path / "c.safetensors"), *given)


def test_it_tells_what_it_wrote(qconv_cli, line, tmp_path):
    ran = qconv_cli(*line)
    assert ran.code == 0
    file = load_calibration(tmp_path / "c.safetensors")
    assert file.metadata.statistics == "full"
    assert "6 windows, 192 tokens" in ran.out
    assert re.search(r"  a.jsonl: 6 of \d+ windows; \d+ of 12 documents", ran.out)
    assert "statistics  full, of 13 inputs of 22 linear weights, 192 tokens at least" in ran.out
    assert file.metadata.digest in ran.out
    assert ran.told == []


def test_warnings_go_to_stderr(qconv_cli, line):
    ran = qconv_cli(*line, "--windows", "1")
    assert "warning: 13 of 13 Gram matrices rest on fewer than 4 tokens per column" in ran.err
    assert "Gram" not in ran.out


def test_json_is_one_document(qconv_cli, line):
    document = json.loads(qconv_cli(*line, "--json").out)
    assert (document["windows"], document["tokens"], document["statistics"]) == (6, 192, "full")


def test_windows_of_unequal_length_and_all_of_them(qconv_cli, line, tmp_path):
    ran = qconv_cli(
        *line, "--no-packing", "--no-chat-template", "--windows", "all", "--statistics", "none"
    )
    assert ran.code == 0
    file = load_calibration(tmp_path / "c.safetensors")
    assert len(file.windows) == 12
    assert file.metadata.options[0].windows is None
    assert not file.metadata.options[0].chat_template


def test_shards_add_up(qconv_cli, line, folder, tmp_path):
    parts = [str(tmp_path / f"{number}.safetensors") for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        assert qconv_cli(*line, "-o", part, "--shard", f"{number}/2").code == 0
    out = str(tmp_path / "sum.safetensors")
    ran = qconv_cli("calibrate", str(folder), "-o", out, "--add", parts[0], "--add", parts[1])
    assert ran.code == 0
    assert qconv_cli(*line).code == 0
    both, whole = (load_calibration(tmp_path / f"{n}.safetensors") for n in ("sum", "c"))
    assert both.metadata.digest == whole.metadata.digest


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--windows", "many"), 2, "--windows 'many' must be a whole number from 1 on, or all"),
        (("--windows", "0"), 2, "--windows '0' must be"),
        (("--shard", "1:2"), 2, "--shard '1:2' must be a part and how many there are, e.g. 1/2"),
        (("--shard", "3/2"), 2, "shard 3/2 is not one of 1/2 to 2/2"),
        (("--sampling", "randon"), 2, "'randon' is not one of"),
        (("--window-length", "65"), 2, "windows of 65 tokens, but the context of llama is 64"),
        (("--add", "x.safetensors"), 2, "--add takes windows from the files it adds"),
        (("--calibration", "missing.txt"), 3, "'missing.txt' does not exist"),
        (("--min-tokens-per-expert", "999"), 6, "saw 192 tokens, but --min-tokens-per-expert"),
        (("--max-ram", "1kB"), 5, "more than --max-ram 1000"),
        (("--device", "tpu"), 2, "--device tpu"),
    ],
)
def test_refusals(qconv_cli, line, tmp_path, options, code, message):
    ran = qconv_cli(*line, *options)
    assert ran.code == code
    assert message in ran.err
    assert not (tmp_path / "c.safetensors").exists()


def test_an_existing_file_stays(qconv_cli, line, tmp_path):
    (tmp_path / "c.safetensors").write_text("mine")
    assert qconv_cli(*line).code == 2
    assert (tmp_path / "c.safetensors").read_text() == "mine"
    assert qconv_cli(*line, "--force").code == 0


def test_a_log_gets_a_line_now_and_then(qconv_cli, line, monkeypatch):
    monkeypatch.setattr(command, "_LINE_EVERY", 0.0)
    ran = qconv_cli(*line)
    assert "33%  model.layers.1" in ran.err
    assert "model.layers" not in qconv_cli(*line, "--force", "--quiet").err
