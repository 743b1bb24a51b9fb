"""Text becomes in the engine the tokens that the source's tokenizer makes of it; damage shows."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest

import qconv
from plugins.gguf_models import (
    byte_level_files,
    llama_config,
    save_model,
    sentencepiece_json,
    sentencepiece_model,
)
from qconv._host import load_plugins
from qconv._sources import open_source
from qconv.errors import Unsupported
from qconv.validation._engine_tokens import TEXTS, compare_tokens
from validation.damage import model_at, replace_in, validated

SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
RUNTIME = {"depth": "runtime", "windows": 2, "window_length": 16, "device": "cpu"}

needs_llama_cpp = pytest.mark.skipif(
    not __import__("importlib").util.find_spec("xllamacpp"),
    reason="needs llama.cpp: pip install 'qconv[llama-cpp]'",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return model_at(tmp_path_factory.mktemp("source") / "tiny", **SIZES, **HEADS)


@pytest.fixture(scope="module")
def gguf(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    return qconv.convert(source, "gguf:q8_0", out=out).artifacts[0].files[0]


@pytest.fixture
def copied(gguf, tmp_path) -> Path:
    return Path(shutil.copy(gguf, tmp_path / gguf.name))


def faults(artifact: Path, source: Path) -> tuple[str, ...]:
    host = load_plugins()
    with open_source(source, host) as opened, host.runtime(artifact, 64) as runtime:
        found = compare_tokens(runtime, opened.model, None)
    assert found.reason is None
    return found.faults


def test_no_text_is_changed_by_normalization():
    assert [text for text in TEXTS if unicodedata.normalize("NFKC", text) != text] == []


@needs_llama_cpp
def test_a_sound_gguf_has_the_tokens_of_its_source(source, gguf):
    result = validated(gguf, source, **RUNTIME)
    assert result.faults == ()
    assert "tokens" not in {each.name for each in result.gates}


@needs_llama_cpp
def test_another_pre_tokenizer_is_told_with_the_text(source, copied):
    replace_in(copied, b"gpt-2", b"qwen2")
    result = validated(copied, source, **RUNTIME)
    told = [each for each in result.faults if each.startswith("tokens in llama.cpp: ")]
    assert f"{TEXTS[0]!r} becomes tokens [" in told[0]
    assert "but the source makes it [" in told[0]
    assert "the first difference is token number" in told[0]
    assert result.status == "fail"


@needs_llama_cpp
def test_merges_in_another_order_are_told(source, copied):
    """Those of two letters, last to first."""
    merges = json.loads((source / "tokenizer.json").read_text())["model"]["merges"]
    stored = [_stored(each) for each in merges]
    short = [each for each in stored if len(each) == 8 + 3]
    data = bytearray(copied.read_bytes())
    begin = data.index(b"tokenizer.ggml.merges")
    places = [data.index(each, begin) for each in short]
    for place, merge in zip(places, reversed(short), strict=True):
        data[place : place + len(merge)] = merge
    copied.write_bytes(data)
    assert "becomes tokens [" in faults(copied, source)[0]


def _stored(merge: list[str]) -> bytes:
    """As a GGUF has it: its length, then the text."""
    text = " ".join(merge).encode()
    return len(text).to_bytes(8, "little") + text


@needs_llama_cpp
def test_tokens_put_before_a_text_are_told_once(source, copied):
    flag = b"tokenizer.ggml.add_bos_token" + (7).to_bytes(4, "little")  # a boolean
    replace_in(copied, flag + b"\0", flag + b"\1")
    (told,) = faults(copied, source)
    assert told == "it begins every text with tokens [1], but the source's with []"
    result = validated(copied, source, **RUNTIME)
    assert f"tokens in llama.cpp: {told}" in result.faults


@needs_llama_cpp
def test_another_chat_template_is_told(source, copied):
    replace_in(copied, b"<|start|>assistant", b"<|start|>assistent")
    (told,) = faults(copied, source)
    assert told.startswith("a user's message, written as ")
    assert "<|start|>user\\nWhat is 7 * 6?" in told
    assert "but the source makes it [" in told


@needs_llama_cpp
def test_a_special_token_that_is_none_any_more_is_told(source, copied):
    tokens = (7).to_bytes(8, "little") + b"<|end|>"
    replace_in(copied, tokens, (7).to_bytes(8, "little") + b"<|emd|>")
    found = faults(copied, source)
    assert any("<|end|>" in each for each in found)


@needs_llama_cpp
@pytest.mark.parametrize("legacy", [True, False])
def test_spaces_that_llama_cpp_puts_itself_are_no_fault(tmp_path, legacy):
    pytest.importorskip("sentencepiece")
    files = sentencepiece_json(sentencepiece_model(), legacy=legacy, chat=("<|start|>", "<|end|>"))
    if not legacy:  # as of Llama 2: one before the text, and none after special tokens
        state = json.loads(files["tokenizer.json"])
        state["pre_tokenizer"]["prepend_scheme"] = "first"
        files["tokenizer.json"] = json.dumps(state).encode()
    files |= {"chat_template.jinja": byte_level_files()["chat_template.jinja"]}
    model = save_model(tmp_path / "tiny", llama_config(**SIZES, **HEADS), files)
    made = qconv.convert(model, "gguf:q8_0", out=tmp_path).artifacts[0].files[0]
    assert faults(made, model) == ()


def test_a_folder_is_held_to_its_source_too(source, tmp_path):
    made = qconv.convert(source, "safetensors:fp32", out=tmp_path).artifacts[0].files[0].parent
    assert faults(made, source) == ()
    state = json.loads((made / "tokenizer.json").read_text())
    state["pre_tokenizer"]["add_prefix_space"] = True
    (made / "tokenizer.json").write_text(json.dumps(state))
    assert "'Hello, world!" in faults(made, source)[0]


class Silent:
    """An engine that cannot tokenize."""

    engine = "silent"

    def tokenize(self, text):
        raise NotImplementedError("no tokens here")


def test_an_engine_that_cannot_tokenize_is_unmeasured(source):
    with open_source(source, load_plugins()) as opened:
        found = compare_tokens(Silent(), opened.model, None)
    assert found.faults == ()
    assert found.reason == (
        "tokens of silent cannot be compared: NotImplementedError: no tokens here"
    )


def test_a_source_without_a_tokenizer_leaves_nothing_to_compare():
    model = SimpleNamespace(name="toy", files={}, config={})
    found = compare_tokens(Silent(), model, None)
    assert (found.faults, found.reason) == ((), None)


class Speechless:
    """An engine whose artifact lost its chat template."""

    engine = "speechless"

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def tokenize(self, text):
        return self._tokenizer.ids(text)

    def converse(self, prompt):
        raise Unsupported("there is no chat template")


def test_a_chat_template_that_is_gone_is_told(source):
    from qconv.calibration._tokenizer import ModelTokenizer

    with open_source(source, load_plugins()) as opened:
        found = compare_tokens(Speechless(ModelTokenizer(opened.model)), opened.model, None)
    assert found.faults == (
        "a conversation cannot be written, but by the source's template: there is no chat template",
    )
