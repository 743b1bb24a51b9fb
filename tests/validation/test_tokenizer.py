"""Tokenizer parity: what is damaged is found, and what is sound is not refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import qconv
from plugins.gguf_models import byte_level_files
from qconv import _host
from qconv.checkpoint import open_checkpoint
from qconv.plugin import ModelInfo
from qconv.validation._planned import Companions
from qconv.validation._tokenizer import tokenizer_faults
from toy_packed import PackedPlugin, host_with
from validation.damage import CONFIG, converted, model_at, replace_in, validated

FILES = byte_level_files()
FILES["tokenizer_config.json"] = json.dumps(
    {**json.loads(FILES["tokenizer_config.json"]), **CONFIG}
).encode()


def model(files: dict[str, bytes] = FILES) -> ModelInfo:
    return ModelInfo(
        kind="safetensors", name="tiny", config={}, tensors={}, files=files, metadata={}
    )


def written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def faults(folder: Path, files: dict[str, bytes], source: ModelInfo | None = None):
    """Of an artifact with exactly these files, which its backend meant to write."""
    return tokenizer_faults(written(folder, files), source or model(), Companions(files=files))


def changed(edit) -> dict[str, bytes]:
    parsed = json.loads(FILES["tokenizer.json"])
    edit(parsed)
    return {**FILES, "tokenizer.json": json.dumps(parsed).encode()}


def test_a_backend_that_writes_weights_only_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_host, "load_plugins", lambda: host_with(PackedPlugin()))
    source = model_at(tmp_path / "tiny")
    done = qconv.convert(source, "toypack:same", out=tmp_path / "out")
    assert done.artifacts[0].files
    assert "tokenizer.json" not in {each.name for each in done.artifacts[0].files}


def test_a_file_that_the_backend_leaves_out_is_not_missing(tmp_path):
    source = model({**FILES, "merges.txt": b"#version", "vocab.json": b"{}"})
    assert faults(tmp_path / "a", FILES, source) == ()


def test_a_file_that_the_backend_writes_and_that_is_not_there_is_missing(tmp_path):
    folder = written(tmp_path / "a", {})
    planned = Companions(files={"tokenizer.json": FILES["tokenizer.json"]})
    assert tokenizer_faults(folder, model(), planned) == ("tokenizer.json is missing",)


def test_a_single_file_is_not_judged_by_what_lies_beside_it(tmp_path):
    folder = written(tmp_path / "a", changed(lambda parsed: parsed["model"].pop("merges")))
    (folder / "weights.bin").write_bytes(b"weights")
    assert tokenizer_faults(folder / "weights.bin", model(), Companions(files={})) == ()


def test_a_tokenizer_without_merges_is_found(tmp_path):
    files = changed(lambda parsed: parsed["model"].pop("merges"))
    (fault,) = faults(tmp_path / "a", files)
    assert fault.startswith("merges: there are 0, but the source has ")


def test_a_tokenizer_without_an_end_is_found(tmp_path):
    config = json.loads(FILES["tokenizer_config.json"])
    del config["eos_token"]
    files = {**FILES, "tokenizer_config.json": json.dumps(config).encode()}
    (fault,) = faults(tmp_path / "a", files)
    assert fault.startswith("eos_token is token None, but the source's is ")


def without_transformers(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)


def without_data(files: dict[str, bytes]) -> dict[str, bytes]:
    """As of a tokenizer that only transformers can read."""
    return {**files, "tokenizer.model": b"a program", "tokenizer.json": b""}


def test_without_transformers_what_is_as_planned_is_not_refused(tmp_path, monkeypatch):
    without_transformers(monkeypatch)
    files = {**without_data(FILES), "tokenizer_config.json": b"{}"}
    assert faults(tmp_path / "a", files, model(without_data(FILES))) == ()


def test_without_transformers_what_is_not_as_planned_is_a_fault(tmp_path, monkeypatch):
    without_transformers(monkeypatch)
    folder = written(tmp_path / "a", {**without_data(FILES), "tokenizer.model": b"another"})
    planned = Companions(files=without_data(FILES))
    assert tokenizer_faults(folder, model(without_data(FILES)), planned) == (
        "tokenizer.model: not the source's, and what differs cannot be told",
    )


def test_a_source_that_transformers_cannot_load_is_no_fault_of_the_artifact(tmp_path):
    files = {**without_data(FILES), "tokenizer_config.json": b"{}"}
    assert faults(tmp_path / "a", files, model(without_data(FILES))) == ()


def test_a_tokenizer_that_cannot_be_loaded_is_found(tmp_path):
    pytest.importorskip("transformers")
    files = changed(lambda parsed: parsed.update(pre_tokenizer={"type": "Nothing"}))
    (fault,) = faults(tmp_path / "a", files)
    assert fault.startswith("it cannot be loaded: tiny: its tokenizer files cannot be loaded")


def test_a_template_that_both_refuse_is_compared_as_text(tmp_path):
    pytest.importorskip("transformers")

    parsed = json.loads(FILES["tokenizer.json"])["model"]
    plain = {
        "vocab.json": json.dumps(parsed["vocab"]).encode(),
        "merges.txt": "\n".join(" ".join(each) for each in parsed["merges"]).encode(),
        "tokenizer_config.json": b'{"tokenizer_class": "GPT2Tokenizer"}',
    }
    one, other = (
        {**plain, "chat_template.jinja": b"{{ raise_exception('%s') }}" % each}
        for each in (b"a", b"b")
    )
    (fault,) = faults(tmp_path / "a", one, model(other))
    assert fault.startswith('a conversation is rendered as "{{ raise_exception(')


def test_a_gguf_that_lost_its_tokenizer_is_found(tmp_path):
    path = converted(model_at(tmp_path / "tiny"), "gguf:q8_0", tmp_path / "out")
    with open_checkpoint(path, require_config=False) as opened:
        metadata = opened.model.metadata
    replace_in(path, b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz")
    planned = Companions(files={}, metadata=metadata)
    assert tokenizer_faults(path, model(), planned) == (
        "it holds no tokenizer, and its backend writes one",
    )
    assert tokenizer_faults(path, model(), Companions(files={}, metadata={})) == ()


def test_what_pads_the_vocabulary_of_a_gguf_need_not_be_in_a_folder(tmp_path):
    source = converted(model_at(tmp_path / "tiny"), "gguf:f32", tmp_path / "gguf")
    with open_checkpoint(source, require_config=False) as opened:
        assert "[PAD511]" in opened.model.metadata["tokenizer.ggml.tokens"].value
    result = validated(converted(source, "safetensors:fp16", tmp_path / "out"), source)
    assert result.faults == ()
