"""Token ids from llama.cpp are those of transformers (or of SentencePiece itself)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_models import (
    HARD,
    LLAMA3_SPLIT,
    TEMPLATE,
    byte_level_files,
    llama_config,
    save_model,
    sentencepiece_json,
    sentencepiece_model,
    split,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from qconv.errors import QconvError, UnreadableInput, Unsupported
from qconv_gguf import _pretokenizers
from qconv_gguf._llama_cpp import LlamaCpp
from qconv_gguf._metadata import read_vocabulary
from qconv_gguf._reader import GgufReader
from qconv_gguf._special_tokens import special_tokens
from qconv_gguf._tokenizer_files import read_tokenizer_files
from qconv_gguf._vocabulary import TokenType, Vocabulary

Write = Callable[..., Path]

Files = dict[str, bytes]
Convert = Callable[[Files], Path]

DIGITS = {"type": "Digits", "individual_digits": True}
SMALL = llama_config(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)


def edited(files: Files, name: str, edit: Callable[[dict[str, Any]], object]) -> Files:
    """The files with one JSON file changed in place by ``edit``."""
    state = json.loads(files.get(name, b"{}"))
    edit(state)
    return files | {name: json.dumps(state).encode()}


@pytest.fixture
def convert(tmp_path: Path, write_gguf: Write) -> Convert:
    return lambda files: write_gguf(save_model(tmp_path / "tiny", SMALL, files), "f32")


def assert_same_ids(path: Path, folder: Path, texts: tuple[str, ...] = HARD) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the judge")
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'qconv[llama-cpp]'")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with LlamaCpp(path) as llama:
        for text in texts:
            assert llama.tokenize(text) == tokenizer(text)["input_ids"], text
            bare = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert llama.tokenize(text, add_special=False) == bare, text


def regex(name: str) -> dict[str, Any]:
    return split(getattr(_pretokenizers, name))


BYTE_LEVEL: dict[str, Callable[[], Files]] = {
    "gpt-2": byte_level_files,
    "smollm": lambda: byte_level_files(DIGITS),
    "llama-bpe": lambda: byte_level_files(split(LLAMA3_SPLIT), template=True, ignore_merges=True),
    "smaug-bpe": lambda: byte_level_files(split(LLAMA3_SPLIT)),
    "qwen2": lambda: byte_level_files(regex("_QWEN2")),
    "qwen35": lambda: byte_level_files(regex("_QWEN35")),
    "tekken": lambda: byte_level_files(regex("_TEKKEN"), ignore_merges=True),
    "gpt-4o": lambda: byte_level_files(regex("_GPT4O")),
    "seed-coder": lambda: byte_level_files(regex("_SEED")),
    "deepseek-v3": lambda: byte_level_files(
        split(r"\p{N}{1,3}"), regex("_CJK"), regex("_DEEPSEEK3")
    ),
    "deepseek-coder": lambda: byte_level_files(
        split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), regex("_CODER_CJK"), DIGITS
    ),
}


@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_byte_level_ids_are_those_of_transformers(
    pre: str, tmp_path: Path, convert: Convert
) -> None:
    path = convert(BYTE_LEVEL[pre]())
    metadata = GgufReader(path).metadata
    assert metadata["tokenizer.ggml.pre"] == pre
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert_same_ids(path, tmp_path / "tiny")


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("with_model", [True, False])
def test_sentencepiece_ids_are_those_of_transformers(
    legacy: bool, with_model: bool, tmp_path: Path, convert: Convert
) -> None:
    model = sentencepiece_model()
    files = sentencepiece_json(model, legacy=legacy, chat=("<|start|>", "<|end|>"))
    path = convert(files | ({"tokenizer.model": model} if with_model else {}))
    metadata = GgufReader(path).metadata
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.add_space_prefix"] is True
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    # Metaspace adds no space where the text begins with one; llama.cpp always does
    texts = HARD if legacy else tuple(text for text in HARD if not text.startswith(" "))
    assert_same_ids(path, tmp_path / "tiny", texts)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_alone_gives_its_own_ids(prefix: bool, convert: Convert) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'qconv[llama-cpp]'")
    # after such a symbol llama.cpp and transformers add the space prefix again, the library not
    symbols = [] if prefix else ["<tool>", "▁▁▁▁"]
    model = sentencepiece_model(add_dummy_prefix=prefix, user_defined_symbols=symbols)
    path = convert({"tokenizer.model": model})
    judge = sentencepiece.SentencePieceProcessor(model_proto=model)
    with LlamaCpp(path) as llama:
        for text in (*HARD, "a <tool>b" if symbols else "a b"):
            assert llama.tokenize(text, add_special=False) == judge.encode(text), text
        assert llama.tokenize("The fox")[0] == judge.bos_id() == 1


def test_a_rendered_conversation_has_the_ids_of_transformers(
    tmp_path: Path, convert: Convert
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the judge")
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'qconv[llama-cpp]'")
    path = convert(byte_level_files(DIGITS))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "tiny")
    messages = [{"role": "user", "content": "Hi\n"}, {"role": "assistant", "content": "42 <tool>"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    with LlamaCpp(path) as llama:
        assert llama.chat_template == tokenizer.chat_template == TEMPLATE
        ids = llama.tokenize(rendered, add_special=False)
    assert ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert ids.count(1) == 3


# --- what the files say ---------------------------------------------------------------------------


def vocabulary(files: Files, rows: int = 512, pre: str | None = None) -> Vocabulary:
    return read_vocabulary(read_tokenizer_files(files), rows, pre)


def specials(files: Files, config: dict[str, Any] | None = None, rows: int = 512) -> dict[str, Any]:
    parsed = read_tokenizer_files(files)
    found = special_tokens(parsed, read_vocabulary(parsed, rows, None), config or {})
    short = {key.removeprefix("tokenizer.").removeprefix("ggml."): v for key, v in found.items()}
    return {key: value.value for key, value in short.items()}


def test_types_of_tokens_and_padding() -> None:
    tokens = vocabulary(byte_level_files(size=300), rows=400).tokens
    assert len(tokens) == 400
    assert [tokens[n].type for n in (0, 2, 3)] == [TokenType.CONTROL] * 2 + [TokenType.NORMAL]
    assert (tokens[300].text, tokens[300].type) == ("<tool>", TokenType.USER_DEFINED)
    assert (tokens[301].text, tokens[301].type) == ("[PAD301]", TokenType.UNUSED)


def test_types_of_sentencepiece_tokens() -> None:
    tokens = vocabulary({"tokenizer.model": sentencepiece_model()}).tokens
    assert [token.text for token in tokens[:4]] == ["<unk>", "<s>", "</s>", "<0x00>"]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert [token.type for token in tokens[:4]] == kinds
    assert tokens[-1].type is TokenType.UNUSED


def test_added_tokens_of_older_files() -> None:
    files = {
        "tokenizer.model": sentencepiece_model(),
        "added_tokens.json": b'{"<old>": 450, "<x>": 451}',
        "tokenizer_config.json": json.dumps(
            {"added_tokens_decoder": {"451": {"content": "\u2581<new>", "special": False}}}
        ).encode(),
    }
    tokens = vocabulary(files).tokens
    assert [tokens[n].text for n in (450, 451)] == ["<old>", " <new>"]
    assert {tokens[n].type for n in (450, 451)} == {TokenType.USER_DEFINED}


def test_merges_come_as_text_or_as_pairs() -> None:
    files = byte_level_files()
    pairs = vocabulary(files).merges

    def as_text(state: dict[str, Any]) -> None:
        state["model"]["merges"] = [" ".join(pair) for pair in state["model"]["merges"]]

    assert vocabulary(edited(files, "tokenizer.json", as_text)).merges == pairs

    def spaced(state: dict[str, Any]) -> None:
        state["model"]["merges"][0] = [" ", "x"]

    assert vocabulary(edited(files, "tokenizer.json", spaced)).merges[0] == "\u0120 x"


def test_special_ids_come_from_the_tokenizer_then_the_config() -> None:
    files = byte_level_files()
    found = specials(files, {"bos_token_id": 9, "eos_token_id": [2, 5, 6, 7], "pad_token_id": 8})
    assert found["bos_token_id"] == 0
    assert found["eos_token_id"] == 2
    assert found["padding_token_id"] == 8
    assert (found["eot_token_id"], found["eom_token_id"]) == (5, 6)
    assert "unknown_token_id" not in found


def test_every_end_of_generation_config_ends() -> None:
    files = byte_level_files() | {"generation_config.json": b'{"eos_token_id": [2, 301]}'}
    found = specials(files)
    assert (found["eos_token_id"], found["eot_token_id"]) == (2, 301)
    assert "eom_token_id" not in found


def test_ids_beyond_the_vocabulary_are_no_special_tokens() -> None:
    found = specials(byte_level_files(), {"pad_token_id": 99999, "sep_token_id": -1})
    assert "padding_token_id" not in found
    assert "seperator_token_id" not in found


@pytest.mark.parametrize(
    ("config", "template", "expected"),
    [
        ({}, False, (False, False)),
        ({}, True, (True, False)),
        ({"add_bos_token": False}, True, (False, False)),
        ({"add_bos_token": True, "add_eos_token": True}, False, (True, True)),
        ({"add_eos_token": True}, True, (False, True)),
    ],
)
def test_what_is_added_is_as_stated_else_as_the_template_says(
    config: dict[str, Any], template: bool, expected: tuple[bool, bool]
) -> None:
    files = byte_level_files(template=template)
    found = specials(edited(files, "tokenizer_config.json", lambda state: state.update(config)))
    assert (found["add_bos_token"], found["add_eos_token"]) == expected


@pytest.mark.parametrize(("rows", "expected"), [(512, True), (49152, False)])
def test_sentencepiece_alone_begins_texts_but_for_granites_size(rows: int, expected: bool) -> None:
    files = {
        "tokenizer.model": sentencepiece_model(),
        "tokenizer_config.json": b'{"bos_token": "<s>"}',
    }
    assert specials(files, rows=rows)["add_bos_token"] is expected


def test_a_roberta_post_processor_frames_text() -> None:
    def roberta(state: dict[str, Any]) -> None:
        state["post_processor"] = {
            "type": "RobertaProcessing",
            "sep": ["<|end|>", 2],
            "cls": ["<|start|>", 1],
        }

    found = specials(edited(byte_level_files(), "tokenizer.json", roberta))
    assert (found["bos_token_id"], found["eos_token_id"]) == (1, 2)
    assert (found["add_bos_token"], found["add_eos_token"]) == (True, True)


def test_named_chat_templates() -> None:
    templates = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    files = byte_level_files()
    del files["chat_template.jinja"]
    stated = edited(files, "tokenizer_config.json", lambda s: s.update(chat_template=templates))
    found = specials(stated)
    assert (found["chat_template"], found["chat_template.tool"]) == ("D", "T")
    assert found["chat_templates"] == ["tool"]
    file = {"chat_template.json": b'{"chat_template": "J"}'}
    assert specials(files | file)["chat_template"] == "J"
    assert specials(stated | {"chat_template.jinja": b"N"})["chat_template"] == "N"


def test_the_name_of_the_pre_tokenizer_can_be_given() -> None:
    files = byte_level_files(split(r"\w+|\W+"))
    with pytest.raises(Unsupported, match=r"splits text by '\\\\w\+\|\\\\W\+'.*give pre=NAME"):
        vocabulary(files)
    assert vocabulary(files, pre="gpt-2").pre == "gpt-2"


@pytest.mark.parametrize(
    ("step", "found"),
    [
        ({"type": "Whitespace"}, "'<Whitespace>'"),
        ({"type": "Digits", "individual_digits": False}, r"'\\\\p\{N\}\+'"),
        ({**split("x"), "behavior": "Removed"}, "'<Split Removed, invert=False>'"),
        ({**split("x"), "pattern": {"String": "."}}, r"'\\\\\.'"),
    ],
)
def test_other_splits_are_named(step: dict[str, Any], found: str) -> None:
    steps = {"type": "Sequence", "pretokenizers": [step, {"type": "ByteLevel"}]}
    files = edited(byte_level_files(), "tokenizer.json", put("pre_tokenizer", value=steps))
    with pytest.raises(Unsupported, match=f"splits text by {found}, then '<ByteLevel with"):
        vocabulary(files)


def test_spelling_does_not_matter() -> None:
    spelt = LLAMA3_SPLIT.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)")
    spelt = spelt.replace("\\r", "\r").replace("]?\\p{L}+", "]?+\\p{L}++")
    files = byte_level_files(split(spelt), template=True, ignore_merges=True)
    assert vocabulary(files).pre == "llama-bpe"


def test_whole_words_first_matters_only_if_merges_do_not_reach_them() -> None:
    files = byte_level_files(ignore_merges=True)
    assert vocabulary(files).pre == "gpt-2"

    def unreachable(state: dict[str, Any]) -> None:
        state["model"]["vocab"]["unreachable"] = 511

    with pytest.raises(Unsupported, match=r"ignore_merges=True"):
        vocabulary(edited(files, "tokenizer.json", unreachable))


def put(*path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def edit(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (put("normalizer", value={"type": "Lowercase"}), Unsupported, "normalizer 'Lowercase'"),
        (
            put("pre_tokenizer", "add_prefix_space", value=True),
            Unsupported,
            "<ByteLevel with a space before the text>",
        ),
        (put("model", "end_of_word_suffix", value="</w>"), Unsupported, "end_of_word_suffix"),
        (put("model", "type", value="WordPiece"), Unsupported, "a WordPiece model that is neither"),
        (put("model", "vocab", "x", value=-1), UnreadableInput, "different whole numbers"),
        (put("model", "vocab", "!", value=7), UnreadableInput, "different whole numbers"),
        (put("model", "merges", value=["ab"]), UnreadableInput, "merge 'ab' is not a pair"),
        (put("model", "merges", value=[["a", 1]]), UnreadableInput, r"merge \['a', 1\] is not"),
        (put("model", value=[]), UnreadableInput, "tokenizer.json: model is list, not a JSON"),
        (
            put("added_tokens", value=[{"id": "x", "content": "y"}]),
            UnreadableInput,
            "added_tokens: id 'x' with content 'y' is not a token",
        ),
        (
            put("added_tokens", value=[{"id": 511, "content": "!"}]),
            UnreadableInput,
            r"ids 3 and 511 share the text '!'",
        ),
        (
            put("added_tokens", value=[{"id": 600, "content": "<far>"}]),
            Unsupported,
            "token '<far>' has id 600, but the embedding has 512 rows",
        ),
    ],
)
def test_what_is_wrong_with_tokenizer_json_is_named(
    edit: Callable[[dict[str, Any]], None], error: type[QconvError], message: str
) -> None:
    with pytest.raises(error, match=message):
        vocabulary(edited(byte_level_files(), "tokenizer.json", edit))


def test_composed_characters_are_left_to_the_caller() -> None:
    nested = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    files = edited(byte_level_files(), "tokenizer.json", put("normalizer", value=nested))
    assert vocabulary(files).pre == "gpt-2"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("normalizer", value={"type": "NFKC"}), "normalizer 'NFKC' changes text"),
        (put("pre_tokenizer", value={"type": "Whitespace"}), "pre-tokenizer 'Whitespace' splits"),
    ],
)
def test_a_sentencepiece_json_that_llama_cpp_would_not_follow_is_refused(
    edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    files = sentencepiece_json(sentencepiece_model(), legacy=True)
    with pytest.raises(Unsupported, match=message):
        vocabulary(edited(files, "tokenizer.json", edit))
    trusted = vocabulary(edited(files, "tokenizer.json", edit), pre="default")
    assert trusted.kind == "llama"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram", "hard_vocab_limit": False}, "is a unigram model"),
        ({"normalization_rule_name": "nmt_nfkc"}, r"normalizes text \('nmt_nfkc'"),
        ({"remove_extra_whitespaces": True}, "drops repeated spaces"),
    ],
)
def test_a_sentencepiece_model_that_llama_cpp_would_not_follow_is_refused(
    options: dict[str, Any], message: str
) -> None:
    files = {"tokenizer.model": sentencepiece_model(**options)}
    with pytest.raises(Unsupported, match=message):
        vocabulary(files)
    assert vocabulary(files, pre="default").kind == "llama"


def test_metaspace_can_add_no_space() -> None:
    files = sentencepiece_json(sentencepiece_model(), legacy=False)
    assert vocabulary(files).add_space_prefix is True
    for edit in (
        put("pre_tokenizer", "prepend_scheme", value="never"),
        put("pre_tokenizer", value=None),
    ):
        assert vocabulary(edited(files, "tokenizer.json", edit)).add_space_prefix is False


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 20,
        b"IQ== 0\nIg== 1\n",
        b"\x0a\x7fabc",
        b"\x0a\x03\x12\x01x",
        b"\x0b",
        b"\x08\x01",
        b"\x0a\x02\x1a\x00",
    ],
)
def test_a_damaged_sentencepiece_model_is_named(data: bytes) -> None:
    with pytest.raises(UnreadableInput, match=r"tokenizer\.model: not a SentencePiece model"):
        vocabulary({"tokenizer.model": data})


def test_an_unknown_type_of_piece_is_named() -> None:
    with pytest.raises(UnreadableInput, match=r"piece 'a' has unknown type 9"):
        vocabulary({"tokenizer.model": b"\x0a\x05\x0a\x01a\x18\x09"}, pre="default")


def test_files_that_are_missing_or_not_json_are_named() -> None:
    with pytest.raises(UnreadableInput, match=r"looked for tokenizer\.json and tokenizer\.model"):
        vocabulary({"vocab.txt": b""})
    with pytest.raises(UnreadableInput, match=r"tokenizer\.json: not valid JSON"):
        vocabulary({"tokenizer.json": b"{"})
    with pytest.raises(UnreadableInput, match=r"tokenizer\.json is list, not a JSON object"):
        vocabulary({"tokenizer.json": b"[]"})
    with pytest.raises(UnreadableInput, match=r"chat_template\.jinja: not UTF-8"):
        vocabulary(byte_level_files() | {"chat_template.jinja": b"\xff"})


def test_a_frame_of_two_tokens_is_refused() -> None:
    item = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
    files = byte_level_files(template=True)
    state = json.loads(files["tokenizer.json"])
    single = [item, *state["post_processor"]["single"]]
    with pytest.raises(Unsupported, match=r"one token at each end at most"):
        specials(edited(files, "tokenizer.json", put("post_processor", "single", value=single)))


def test_a_beginning_that_nobody_names_is_refused() -> None:
    config = b'{"add_bos_token": true}'
    with pytest.raises(Unsupported, match=r"adds a beginning token, but neither"):
        specials(byte_level_files() | {"tokenizer_config.json": config})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 600) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
PLACES = (
    ("tokenizer.json", "model"),
    ("tokenizer.json", "model", "vocab"),
    ("tokenizer.json", "model", "merges"),
    ("tokenizer.json", "added_tokens"),
    ("tokenizer.json", "added_tokens", 0),
    ("tokenizer.json", "normalizer"),
    ("tokenizer.json", "pre_tokenizer"),
    ("tokenizer.json", "decoder"),
    ("tokenizer.json", "post_processor"),
    ("tokenizer.json", "post_processor", "single"),
    ("tokenizer.json", "post_processor", "single", 0),
    ("tokenizer_config.json", "bos_token"),
    ("tokenizer_config.json", "added_tokens_decoder"),
    ("tokenizer_config.json", "chat_template"),
)


@pytest.fixture(scope="module")
def sound_files() -> tuple[Files, Files]:
    return (
        byte_level_files(template=True),
        sentencepiece_json(sentencepiece_model(), legacy=True),
    )


@settings(max_examples=200, deadline=None)
@given(place=st.sampled_from(PLACES), value=JSON, kind=st.sampled_from((0, 1)), typed=st.booleans())
def test_hostile_tokenizers_raise_nothing_but_our_errors(
    sound_files: tuple[Files, Files], place: tuple[Any, ...], value: Any, kind: int, typed: bool
) -> None:
    if typed and isinstance(value, dict):  # get further than the first look at the type
        names = ("Sequence", "ByteLevel", "Split", "TemplateProcessing", "RobertaProcessing")
        value["type"] = names[len(value) % len(names)]
    name, *path = place
    files = edited(sound_files[kind], name, put(*path, value=value))
    with contextlib.suppress(QconvError):
        specials(files)
