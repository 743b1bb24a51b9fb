"""SentencePiece vocabularies: from tokenizer.model, or from a tokenizer.json made of one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qconv.errors import UnreadableInput, Unsupported

from ._byte_level import read_ids, read_merges
from ._sentencepiece_model import Piece, SentencePieceModel, read_sentencepiece
from ._tokenizer_files import TokenizerFiles, mapping, sequence
from ._vocabulary import Token, TokenType, Vocabulary, number_tokens

_SPACE = "\u2581"
#: Score of what merging should reach last or never.
_LAST = -1e9
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

#: Piece types of sentencepiece_model.proto -> llama.cpp's.
_PIECE_TYPES = {
    1: TokenType.NORMAL,
    2: TokenType.UNKNOWN,
    3: TokenType.CONTROL,
    4: TokenType.USER_DEFINED,
    5: TokenType.UNUSED,
    6: TokenType.BYTE,
}


def is_sentencepiece_json(tokenizer: Mapping[str, Any]) -> bool:
    """Whether tokenizer.json is BPE over characters with bytes to fall back on, as Llama 2's is."""
    model = mapping(tokenizer.get("model"), "tokenizer.json: model")
    return model.get("type", "BPE") == "BPE" and bool(model.get("byte_fallback"))


def model_vocabulary(files: TokenizerFiles, rows: int, *, trusted: bool) -> Vocabulary:
    """The vocabulary of tokenizer.model, padded to ``rows``.

    trusted: write it even if llama.cpp would treat text otherwise

    Raises:
        Unsupported: llama.cpp would treat text otherwise.
        UnreadableInput: the file is damaged.
    """
    model = read_sentencepiece(files.sentencepiece or b"")
    if not trusted:
        _refuse_model(model)
    base = {number: _token(piece) for number, piece in enumerate(model.pieces)}
    tokens = number_tokens(base, files.added, rows, score=-1000.0)
    prefix = model.add_dummy_prefix
    if is_sentencepiece_json(files.tokenizer):
        prefix = _space_prefix(files.tokenizer)
    elif isinstance(files.config.get("add_prefix_space"), bool):
        prefix = files.config["add_prefix_space"]
    return Vocabulary(kind="llama", pre="default", tokens=tokens, add_space_prefix=prefix)


def json_vocabulary(files: TokenizerFiles, rows: int, *, trusted: bool) -> Vocabulary:
    """The vocabulary of tokenizer.json, scored so that llama.cpp merges in the order of its merges.

    Raises:
        Unsupported: llama.cpp would treat text otherwise.
        UnreadableInput: the file is damaged.
    """
    model = mapping(files.tokenizer.get("model"), "tokenizer.json: model")
    ids = read_ids(model)
    if not trusted:
        _refuse_json(files.tokenizer, ids)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(read_merges(model)):
        ranks.setdefault(left + right, rank)
    unknown = model.get("unk_token")
    base = {}
    for text, number in ids.items():
        kind = TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL
        kind = TokenType.UNKNOWN if text == unknown else kind
        base[number] = Token(text=text, type=kind, score=-float(ranks.get(text, -_LAST)))
    tokens = number_tokens(base, files.added, rows, score=_LAST)
    prefix = _space_prefix(files.tokenizer)
    return Vocabulary(kind="llama", pre="default", tokens=tokens, add_space_prefix=prefix)


def _token(piece: Piece) -> Token:
    kind = _PIECE_TYPES.get(piece.type)
    if kind is None:
        raise UnreadableInput(
            f"tokenizer.model: piece {piece.text!r} has unknown type {piece.type}; copy it again"
        )
    text = piece.text
    if kind is TokenType.USER_DEFINED:
        text = text.replace(_SPACE, " ")  # found in the text before spaces are marked
    return Token(text=text, type=kind, score=piece.score)


def _refuse_model(model: SentencePieceModel) -> None:
    if model.kind != "bpe":
        raise Unsupported(
            f"tokenizer.model is a {model.kind} model, but llama.cpp's llama tokenizer merges like "
            "bpe; give pre=default to write it all the same"
        )
    if model.normalizes:
        raise Unsupported(
            f"tokenizer.model normalizes text ({model.normalizer!r}, or drops repeated spaces), "
            "which llama.cpp's llama tokenizer does not; give pre=default to write it all the same"
        )


def _refuse_json(tokenizer: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    for step in _steps(tokenizer.get("normalizer"), "normalizers"):
        known = step.get("type") == "Prepend" or (
            step.get("type") == "Replace"
            and step.get("pattern") == {"String": " "}
            and step.get("content") == _SPACE
        )
        if not known:
            raise Unsupported(
                f"tokenizer.json: normalizer {step.get('type')!r} changes text otherwise than "
                "llama.cpp's llama tokenizer; give pre=default to write it all the same"
            )
    for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        splits = step.get("split", True) and any(_SPACE in text.lstrip(_SPACE) for text in ids)
        if step.get("type") != "Metaspace" or splits:
            raise Unsupported(
                f"tokenizer.json: pre-tokenizer {step.get('type')!r} splits text, which "
                "llama.cpp's llama tokenizer does not; give pre=default to write it all the same"
            )


def _steps(node: object, children: str) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as the list of its steps."""
    fields = mapping(node, f"tokenizer.json: {children}")
    if fields.get("type") != "Sequence":
        return [fields] if fields else []
    inner = sequence(fields.get(children), f"tokenizer.json: {children}")
    return [step for child in inner for step in _steps(child, children)]


def _space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether text gets a leading space: a Prepend normalizer, or Metaspace that prepends."""
    for step in _steps(tokenizer.get("normalizer"), "normalizers"):
        if step.get("type") == "Prepend":
            return True
    for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace":
            older = "always" if step.get("add_prefix_space", True) else "never"
            return bool(step.get("prepend_scheme", older) != "never")
    return False
