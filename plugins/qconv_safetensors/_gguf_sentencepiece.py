"""SentencePiece vocabularies as the BPE model of a tokenizer.json.

llama.cpp merges the neighbours whose union has the highest score, the leftmost of equals;
tokenizer.json merges the pair that comes first in its list. Listing the halves of every token by
its score gives the same tokens, if only runs of one character share a score, as in Llama 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qconv.errors import Unsupported

from ._gguf_vocabulary import TokenType

if TYPE_CHECKING:
    from ._gguf_vocabulary import GgufVocabulary

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_BYTES = 256


def sentencepiece_model(vocabulary: GgufVocabulary, unknown: int | None) -> dict[str, Any]:
    """The ``model`` of tokenizer.json. unknown: id of the token for what has none.

    Raises:
        Unsupported: merging by a list would give other tokens than merging by scores.
    """
    ids = vocabulary.ids()
    pieces = {
        text: number for text, number in ids.items() if vocabulary.types[number] == TokenType.NORMAL
    }
    _check_characters(pieces)
    merges = list(_merges(vocabulary, pieces))
    spaced = any(" " in half for merge in merges for half in merge)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if unknown is None else vocabulary.tokens[unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": _falls_back(vocabulary),
        "ignore_merges": False,
        "vocab": ids,
        # as text, which tokenizers of any age read, unless a space would be ambiguous
        "merges": [list(merge) if spaced else " ".join(merge) for merge in merges],
    }


def _falls_back(vocabulary: GgufVocabulary) -> bool:
    """Whether there is a token for every byte."""
    count = sum(
        kind == TokenType.BYTE and bool(_BYTE.fullmatch(text))
        for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
    )
    if count not in (0, _BYTES):
        raise Unsupported(
            f"the GGUF file has tokens for {count} of {_BYTES} bytes, which tokenizer.json treats "
            "otherwise than llama.cpp; start from the model's own checkpoint"
        )
    return count == _BYTES


def _check_characters(pieces: dict[str, int]) -> None:
    """llama.cpp merges characters that are no tokens, too."""
    for text in pieces:
        lost = [each for each in text if each not in pieces]
        if lost and len(text) > 1:
            raise Unsupported(
                f"the GGUF file's token {text!r} has the character {lost[0]!r}, which is no token, "
                "so that tokenizer.json would never reach it; start from the model's own checkpoint"
            )


def _merges(vocabulary: GgufVocabulary, pieces: dict[str, int]) -> Iterator[tuple[str, str]]:
    equals: dict[float, list[str]] = {}
    for text, number in pieces.items():
        if any(_halves(text, pieces)):
            equals.setdefault(vocabulary.scores[number], []).append(text)
    for score in sorted(equals, reverse=True):
        yield from _of_equals(equals[score], pieces)


def _of_equals(texts: list[str], pieces: dict[str, int]) -> list[tuple[str, str]]:
    """The halves of tokens of one score, in an order that does what the leftmost of equals does."""
    halves = [pair for text in texts for pair in _halves(text, pieces)]
    if len({character for text in texts for character in text}) == 1:
        # runs of spaces: the leftmost of equals grows by what follows it, as long as it can
        return sorted(halves, key=lambda pair: (-len(pair[0]), len(pair[1])))
    if len(texts) == 1:
        # the order in which transformers lists the halves of one token
        return sorted(halves, key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))
    raise Unsupported(
        f"the GGUF file's tokens {texts[0]!r} and {texts[1]!r} have the same score, so that "
        "no list of merges gives llama.cpp's tokens; start from the model's own checkpoint"
    )


def _halves(text: str, pieces: dict[str, int]) -> list[tuple[str, str]]:
    """The ways to put a token together from two."""
    cuts = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
    return [pair for pair in cuts if pair[0] in pieces and pair[1] in pieces]
