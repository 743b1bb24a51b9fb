"""``tokenizer.json`` for the tokenizers llama.cpp calls ``gpt2`` and ``llama``.

Text becomes the token ids that llama.cpp gives. One thing is added: tokenizers of Qwen compose
characters (NFC) first, which llama.cpp leaves to its caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput, Unsupported

from ._gguf_pretokenizers import splitting
from ._gguf_sentencepiece import sentencepiece_model

if TYPE_CHECKING:
    from ._gguf_keys import Keys
    from ._gguf_special import Specials
    from ._gguf_vocabulary import GgufVocabulary

_SPACE = "\u2581"
#: What llama.cpp would do to text that is not written down here.
_CHANGING = ("tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.remove_extra_whitespaces")


def tokenizer_json(keys: Keys, vocabulary: GgufVocabulary, specials: Specials) -> dict[str, Any]:
    """The file's content.

    Raises:
        Unsupported: tokenizer.json would split text otherwise than llama.cpp does.
        UnreadableInput: the vocabulary is damaged.
    """
    for key in _CHANGING:
        if key in keys:
            raise Unsupported(
                f"the GGUF file's {key} changes text before it is split, which is not translated "
                "to a tokenizer.json; start from the model's own checkpoint"
            )
    build = _byte_level if vocabulary.kind == "gpt2" else _sentencepiece
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token.id,
                "content": token.text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": token.special,
            }
            for token in vocabulary.added
        ],
        **build(keys, vocabulary, specials),
    }


def _byte_level(keys: Keys, vocabulary: GgufVocabulary, specials: Specials) -> dict[str, Any]:
    if keys.flag("tokenizer.ggml.add_space_prefix", default=False):
        raise Unsupported(
            "the GGUF file's tokenizer.ggml.add_space_prefix is true for byte-level BPE, which is "
            "not translated to a tokenizer.json; start from the model's own checkpoint"
        )
    rule = splitting(keys.text("tokenizer.ggml.pre", ""))
    ids = vocabulary.ids()
    own = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    splits = [
        {"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False}
        for each in rule.splits
    ]
    return {
        "normalizer": {"type": "NFC"} if rule.composes else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*splits, {**own, "use_regex": False}],
        },
        "post_processor": _frame(vocabulary, specials) or {**own, "use_regex": False},
        "decoder": {**own, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": rule.whole_words,
            "vocab": ids,
            "merges": _checked(vocabulary.merges, ids),
        },
    }


def _checked(merges: tuple[str, ...], ids: dict[str, int]) -> list[str]:
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not space or not {left, right, left + right} <= ids.keys():
            raise UnreadableInput(
                f"the GGUF file's merge {merge!r} does not join two of its tokens to a third; it "
                "is damaged, convert the model again"
            )
    return list(merges)


def _sentencepiece(keys: Keys, vocabulary: GgufVocabulary, specials: Specials) -> dict[str, Any]:
    """As transformers writes Llama 2's: spaces marked, one put before each stretch of text."""
    prefix = keys.flag("tokenizer.ggml.add_space_prefix", default=True)
    marked = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    before = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, marked]},
        "pre_tokenizer": None,
        "post_processor": _frame(vocabulary, specials),
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *after],
        },
        "model": sentencepiece_model(vocabulary, specials.named.get("unk")),
    }


def _frame(vocabulary: GgufVocabulary, specials: Specials) -> dict[str, Any] | None:
    """What puts tokens around a text; None for nothing."""
    first = _framing(vocabulary, specials, "bos") if specials.add_bos else None
    last = _framing(vocabulary, specials, "eos") if specials.add_eos else None
    if first is None and last is None:
        return None
    before = [] if first is None else [{"SpecialToken": {"id": first, "type_id": 0}}]
    after = [] if last is None else [{"SpecialToken": {"id": last, "type_id": 0}}]
    sides = [{"Sequence": {"id": side, "type_id": number}} for number, side in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [*before, sides[0], *after],
        "pair": [*before, sides[0], *after, *before, sides[1], *after],
        "special_tokens": {
            text: {"id": text, "ids": [vocabulary.tokens.index(text)], "tokens": [text]}
            for text in (first, last)
            if text is not None
        },
    }


def _framing(vocabulary: GgufVocabulary, specials: Specials, name: str) -> str:
    number = specials.named.get(name)
    if number is None:
        raise UnreadableInput(
            f"the GGUF file has tokenizer.ggml.add_{name}_token, but no valid "
            f"tokenizer.ggml.{name}_token_id; convert the model again"
        )
    return vocabulary.tokens[number]
