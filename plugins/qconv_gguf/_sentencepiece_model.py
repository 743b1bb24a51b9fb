"""Reads tokenizer.model: the few fields of SentencePiece's protobuf that matter here.

The library reads pieces but does not tell how text is normalized, which decides whether llama.cpp
will do the same. Fields:
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from qconv.errors import UnreadableInput

_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece. type: number of ``SentencePiece.Type``."""

    text: str
    score: float
    type: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceModel:
    """A model. kind: unigram, bpe, word or char; normalizes: text changes beyond marked spaces."""

    pieces: tuple[Piece, ...]
    kind: str
    normalizer: str
    normalizes: bool
    add_dummy_prefix: bool


def read_sentencepiece(data: bytes) -> SentencePieceModel:
    """Parse tokenizer.model.

    Raises:
        UnreadableInput: it is not a SentencePiece model.
    """
    try:
        return _model(memoryview(data))
    except (ValueError, IndexError, TypeError, struct.error) as error:
        raise UnreadableInput(
            f"tokenizer.model: not a SentencePiece model ({error}); copy it again"
        ) from error


def _model(data: memoryview) -> SentencePieceModel:
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(data):
        if number == 1:
            fields = dict(_fields(_view(value)))
            text = bytes(_view(fields[1])).decode("utf-8") if 1 in fields else ""
            (score,) = struct.unpack("<f", fields[2]) if 2 in fields else (0.0,)  # type: ignore[arg-type]
            pieces.append(Piece(text=text, score=score, type=_int(fields.get(3, 1))))
        elif number == 2:
            trainer = dict(_fields(_view(value)))
        elif number == 3:
            normalizer = dict(_fields(_view(value)))
    if not pieces:
        raise ValueError("it holds no pieces")
    charsmap = len(_view(normalizer.get(2, memoryview(b""))))
    return SentencePieceModel(
        pieces=tuple(pieces),
        kind=_KINDS.get(_int(trainer.get(3, 1)), "unknown"),
        normalizer=bytes(_view(normalizer.get(1, memoryview(b"")))).decode("utf-8"),
        normalizes=bool(charsmap) or bool(_int(normalizer.get(4, 1))),
        add_dummy_prefix=bool(_int(normalizer.get(3, 1))),
    )


def _view(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise TypeError("a field holds a number where bytes belong")
    return value


def _int(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise TypeError("a field holds bytes where a number belongs")
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of one message; fixed-width numbers stay bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire}")
        if size > len(data) - at:
            raise ValueError("a field reaches beyond the end")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is too long")
