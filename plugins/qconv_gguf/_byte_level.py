"""Byte-level BPE (GPT-2, Llama 3, SmolLM, Qwen ...) from tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qconv.errors import UnreadableInput, Unsupported

from ._pretokenizers import pretokenizer_name
from ._tokenizer_files import TokenizerFiles, mapping, sequence
from ._vocabulary import Token, Vocabulary, number_tokens

#: How byte-level BPE writes a space inside a token.
_SPACE = "\u0120"


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether tokenizer.json holds byte-level BPE, which llama.cpp calls ``gpt2``."""
    model = mapping(tokenizer.get("model"), "tokenizer.json: model")
    if model.get("type", "BPE") != "BPE" or not model.get("vocab"):
        return False
    found: set[str] = set()
    _types(tokenizer.get("pre_tokenizer"), found)
    _types(tokenizer.get("decoder"), found)
    return "ByteLevel" in found


def byte_level_vocabulary(files: TokenizerFiles, rows: int, pre: str | None) -> Vocabulary:
    """The vocabulary, padded to ``rows``. pre: overrides the pre-tokenizer's name.

    Raises:
        Unsupported: llama.cpp would split text otherwise than tokenizer.json does.
        UnreadableInput: tokenizer.json is damaged.
    """
    tokenizer = files.tokenizer
    model = mapping(tokenizer.get("model"), "tokenizer.json: model")
    ids = read_ids(model)
    merges = read_merges(model)
    if pre is None:
        _refuse_subwords(model)
        pre = pretokenizer_name(
            tokenizer,
            ignore_merges=bool(model.get("ignore_merges", False)),
            all_merged=lambda: _all_merged(ids, merges, files),
        )
    base = {number: Token(text=text) for text, number in ids.items()}
    tokens = number_tokens(base, files.added, rows)
    lines = tuple(f"{_marked(left)} {_marked(right)}" for left, right in merges)
    return Vocabulary(kind="gpt2", pre=pre, tokens=tokens, merges=lines)


def read_ids(model: Mapping[str, Any]) -> Mapping[str, int]:
    """Token texts and ids of a BPE model in tokenizer.json.

    Raises:
        UnreadableInput: an id is not a whole number, or is used twice.
    """
    ids = mapping(model.get("vocab"), "tokenizer.json: vocab")
    seen = set(ids.values()) if all(isinstance(n, int) for n in ids.values()) else set()
    if len(seen) != len(ids) or (seen and min(seen) < 0):
        raise UnreadableInput(
            "tokenizer.json: vocab must map texts to different whole numbers; copy it again"
        )
    return ids


def read_merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs, best first; written ``"left right"`` or, since transformers 4.45, ``[left, right]``.

    Raises:
        UnreadableInput: an entry is neither.
    """
    merges = []
    for entry in sequence(model.get("merges"), "tokenizer.json: merges"):
        # a token may itself begin with a space, so the separator is the first one after a character
        parts = entry if isinstance(entry, list) else _halves(entry)
        if len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
            raise UnreadableInput(
                f"tokenizer.json: merge {entry!r} is not a pair of tokens; copy it again"
            )
        merges.append((parts[0], parts[1]))
    return merges


def _halves(entry: object) -> list[str]:
    if not isinstance(entry, str):
        return []
    cut = entry.find(" ", 1)
    return [] if cut < 0 else [entry[:cut], entry[cut + 1 :]]


def _marked(part: str) -> str:
    return part.replace(" ", _SPACE)


def _types(node: object, found: set[str]) -> None:
    """Collect the types of a pre-tokenizer or decoder and of all within it."""
    if isinstance(node, Mapping):
        found.add(str(node.get("type")))
        for key in ("pretokenizers", "decoders"):
            for child in sequence(node.get(key), f"tokenizer.json: {key}"):
                _types(child, found)


def _refuse_subwords(model: Mapping[str, Any]) -> None:
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise Unsupported(
                f"tokenizer.json: {key} {model[key]!r} is beyond llama.cpp's byte-level BPE; "
                "give pre=NAME to write it all the same"
            )


def _all_merged(
    ids: Mapping[str, int], merges: list[tuple[str, str]], files: TokenizerFiles
) -> bool:
    """Whether merges reach every token, so that looking whole words up first changes nothing."""
    reached = {left + right for left, right in merges}
    added = {token.content for token in files.added}
    return all(len(text) == 1 or text in reached or text in added for text in ids)
