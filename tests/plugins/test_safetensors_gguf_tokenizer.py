"""The tokenizer.json made of a GGUF file gives the token ids of llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gguf_models import (
    HARD,
    LLAMA3_SPLIT,
    TEMPLATE,
    byte_level_files,
    save_model,
    sentencepiece_json,
    sentencepiece_model,
    split,
)
from gguf_view import (
    SMALL,
    described,
    hugging_face,
    with_keys,
)

from qconv.errors import Unsupported
from qconv_gguf._llama_cpp import LlamaCpp
from qconv_safetensors import _gguf_pretokenizers
from qconv_safetensors._gguf import as_hugging_face

if TYPE_CHECKING:
    from qconv.plugin import ModelInfo

Write = Callable[..., Path]

DIGITS = {"type": "Digits", "individual_digits": True}


def regex(name: str) -> dict[str, Any]:
    return split(getattr(_gguf_pretokenizers, name))


Files = dict[str, bytes]

BYTE_LEVEL: dict[str, Callable[[], Files]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo"), byte_level_files),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r"), lambda: byte_level_files(DIGITS)
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"),
        lambda: byte_level_files(split(LLAMA3_SPLIT), template=True, ignore_merges=True),
    ),
    **dict.fromkeys(("smaug-bpe", "dbrx"), lambda: byte_level_files(split(LLAMA3_SPLIT))),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "stablelm2"), lambda: byte_level_files(regex("_QWEN2"))
    ),
    "tekken": lambda: byte_level_files(regex("_TEKKEN"), ignore_merges=True),
    "seed-coder": lambda: byte_level_files(regex("_SEED")),
    "deepseek-v3": lambda: byte_level_files(
        split(r"\p{N}{1,3}"), regex("_CJK"), regex("_DEEPSEEK3")
    ),
    "deepseek-coder": lambda: byte_level_files(
        split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), regex("_CODER_CJK"), DIGITS
    ),
}


def assert_same_ids(path: Path, folder: Path, texts: tuple[str, ...] = HARD) -> None:
    """llama.cpp's ids of the file are transformers' of the folder made from it."""
    transformers = pytest.importorskip("transformers", reason="transformers reads the tokenizer")
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'qconv[llama-cpp]'")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with LlamaCpp(path) as llama:
        for text in texts:
            ids = llama.tokenize(text)
            assert tokenizer(text)["input_ids"] == ids, text
            bare = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert bare == llama.tokenize(text, add_special=False), text
            # around added tokens SentencePiece marks spaces of its own
            if "<" not in text and "\u2581" not in text:
                assert tokenizer.decode(bare) == text


def test_every_splitting_is_compared_with_llama_cpp() -> None:
    assert BYTE_LEVEL.keys() == _gguf_pretokenizers._RULES.keys()


@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_byte_level_ids_are_those_of_llama_cpp(pre: str, tmp_path: Path, write_gguf: Write) -> None:
    folder = save_model(tmp_path / "tiny", SMALL, BYTE_LEVEL[pre]())
    path = write_gguf(folder, "f32", pre=pre)
    composes = _gguf_pretokenizers._RULES[pre].composes
    texts = tuple(text for text in HARD if not (composes and "e\u0301" in text))
    texts = (*texts, "x <tool> y<tool>\n", "<|start|><|end|> <|begin|>")
    assert_same_ids(path, hugging_face(path, tmp_path / "back"), texts)


def test_qwen_composes_characters_first(tmp_path: Path, write_gguf: Write) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers reads the tokenizer")
    folder = save_model(tmp_path / "tiny", SMALL, BYTE_LEVEL["qwen2"]())
    back = hugging_face(write_gguf(folder, "f32"), tmp_path / "back")
    tokenizer = transformers.AutoTokenizer.from_pretrained(back)
    assert tokenizer("e\u0301")["input_ids"] == tokenizer("\u00e9")["input_ids"]


@pytest.mark.parametrize("with_model", [True, False])
def test_sentencepiece_ids_are_those_of_llama_cpp(
    with_model: bool, tmp_path: Path, write_gguf: Write
) -> None:
    model = sentencepiece_model()
    files = sentencepiece_json(model, legacy=True, chat=("<|start|>", "<|end|>"))
    files |= {"tokenizer.model": model} if with_model else {}
    path = write_gguf(save_model(tmp_path / "tiny", SMALL, files), "f32")
    texts = (*HARD, "a" * 9, " " * 17, "ab" * 20, "<s>a</s> b", "\u2581x", "\x00\x7f")
    assert_same_ids(path, hugging_face(path, tmp_path / "back"), texts)


def test_runs_of_spaces_share_a_score_as_in_llama_2(tmp_path: Path, write_gguf: Write) -> None:
    runs = [2, 4, 8, 5, 16, 6, 12, 13, 10, 14, 3, 9, 7]
    model = sentencepiece_model(user_defined_symbols=["\u2581" * size for size in runs])
    folder = save_model(tmp_path / "tiny", SMALL, {"tokenizer.model": model})
    path = write_gguf(folder, "f32")
    view = described(path)
    types = list(view.metadata["tokenizer.ggml.token_type"].value)
    scores = list(view.metadata["tokenizer.ggml.scores"].value)
    first = view.metadata["tokenizer.ggml.tokens"].value.index("  ")
    tokens = list(view.metadata["tokenizer.ggml.tokens"].value)
    for place, size in enumerate(runs, start=first):
        tokens[place], types[place], scores[place] = "\u2581" * size, 1, -1e9
    rewritten = rewrite(path, tokens, types, scores)
    texts = tuple("x" + " " * count + "y" for count in range(80))
    assert_same_ids(rewritten, hugging_face(rewritten, tmp_path / "back"), texts)


def rewrite(path: Path, tokens: list[str], types: list[int], scores: list[float]) -> Path:
    """A copy of the file with another vocabulary."""
    import gguf

    reader = gguf.GGUFReader(path)
    out = path.with_name("rewritten.gguf")
    writer = gguf.GGUFWriter(out, "llama")
    for key, field in reader.fields.items():
        own = {
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.scores": scores,
        }
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, own.get(key, field.contents()), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_sentencepiece_without_a_leading_space(tmp_path: Path, write_gguf: Write) -> None:
    model = sentencepiece_model(add_dummy_prefix=False, user_defined_symbols=["<tool>"])
    folder = save_model(tmp_path / "tiny", SMALL, {"tokenizer.model": model})
    path = write_gguf(folder, "f32")
    assert_same_ids(path, hugging_face(path, tmp_path / "back"), (*HARD, "a <tool>b"))


def test_chat_templates_and_special_tokens_come_along(tmp_path: Path, write_gguf: Write) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers reads the tokenizer")
    files = byte_level_files(template=True)
    files["generation_config.json"] = json.dumps(
        {"eos_token_id": [2, 1], "temperature": 0.6, "top_p": 0.9, "top_k": 20}
    ).encode()
    path = write_gguf(save_model(tmp_path / "tiny", SMALL, files), "f32")
    back = hugging_face(path, tmp_path / "back")
    assert json.loads((back / "generation_config.json").read_bytes()) == {
        "bos_token_id": 0,
        "do_sample": True,
        "eos_token_id": [2, 1],
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.9,
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(back)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin|>", "<|end|>")
    assert tokenizer.chat_template == TEMPLATE
    assert (back / "chat_template.jinja").read_text() == TEMPLATE


@pytest.fixture
def spm(tmp_path: Path, write_gguf: Write) -> ModelInfo:
    files = {"tokenizer.model": sentencepiece_model()}
    return described(write_gguf(save_model(tmp_path / "tiny", SMALL, files), "f32"))


def scored(spm: ModelInfo, edit: Callable[[list[float]], None]) -> ModelInfo:
    scores = list(spm.metadata["tokenizer.ggml.scores"].value)
    edit(scores)
    return with_keys(spm, tokenizer__ggml__scores=tuple(scores))


def test_equal_scores_are_refused(spm: ModelInfo) -> None:
    def edit(scores: list[float]) -> None:
        scores[259:261] = [-1.0, -1.0]

    with pytest.raises(Unsupported, match=r"have the same score, so that no list of merges gives"):
        as_hugging_face(scored(spm, edit))


def test_a_character_that_is_no_token_is_refused(spm: ModelInfo) -> None:
    tokens = list(spm.metadata["tokenizer.ggml.tokens"].value)
    tokens[259] = "\u2603\u2603"
    changed = with_keys(spm, tokenizer__ggml__tokens=tuple(tokens))
    with pytest.raises(Unsupported, match=r"has the character '\u2603', which is no token"):
        as_hugging_face(changed)


def test_some_bytes_only_are_refused(spm: ModelInfo) -> None:
    types = list(spm.metadata["tokenizer.ggml.token_type"].value)
    types[3] = 5
    changed = with_keys(spm, tokenizer__ggml__token_type=tuple(types))
    with pytest.raises(Unsupported, match=r"has tokens for 255 of 256 bytes"):
        as_hugging_face(changed)
