"""The vocabulary of a GGUF file, checked."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Literal

from qconv.errors import UnreadableInput, Unsupported

if TYPE_CHECKING:
    from ._gguf_keys import Keys


class TokenType(IntEnum):
    """What a token is to llama.cpp (``llama.h``, ``llama_token_type``)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A token that is cut out of text before anything else happens to it."""

    id: int
    text: str
    special: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufVocabulary:
    """Tokens by id.

    kind: llama.cpp's ``gpt2`` (byte-level BPE) or ``llama`` (SentencePiece)
    scores: SentencePiece merges the pair with the highest score first
    merges: pairs ``left right``, best first (BPE)
    """

    kind: Literal["gpt2", "llama"]
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]

    @property
    def added(self) -> tuple[AddedToken, ...]:
        """Tokens cut out of text, special ones and others, by id."""
        special = (TokenType.CONTROL, TokenType.UNKNOWN)
        return tuple(
            AddedToken(id=number, text=self.tokens[number], special=kind in special)
            for number, kind in enumerate(self.types)
            if kind in (*special, TokenType.USER_DEFINED)
        )

    def ids(self) -> dict[str, int]:
        """Ids by text, less the padding at the end, which only fills up the embedding."""
        last = len(self.tokens)
        while last and self.types[last - 1] == TokenType.UNUSED:
            last -= 1
        return {text: number for number, text in enumerate(self.tokens[:last])}


def read_vocabulary(keys: Keys, rows: int) -> GgufVocabulary:
    """Read ``tokenizer.ggml.*``.

    rows: of the embedding

    Raises:
        Unsupported: a kind of tokenizer that is not translated.
        UnreadableInput: the vocabulary is damaged.
    """
    kind = keys.text("tokenizer.ggml.model", "")
    if kind not in ("gpt2", "llama"):
        raise Unsupported(
            f"the GGUF file's tokenizer.ggml.model {kind!r} is not translated to a tokenizer.json, "
            "only gpt2 (byte-level BPE) and llama (SentencePiece); start from the model's own "
            "checkpoint"
        )
    tokens = keys.texts("tokenizer.ggml.tokens")
    if not 0 < len(tokens) <= rows:
        raise UnreadableInput(
            f"the GGUF file has {len(tokens)} tokens for {rows} rows of the embedding; it is "
            "damaged, convert the model again"
        )
    _check_unique(tokens)
    types = keys.wholes("tokenizer.ggml.token_type") or (int(TokenType.NORMAL),) * len(tokens)
    scores = keys.floats("tokenizer.ggml.scores") or (0.0,) * len(tokens)
    for key, values in (("token_type", types), ("scores", scores)):
        if len(values) != len(tokens):
            raise UnreadableInput(
                f"the GGUF file has {len(values)} entries in tokenizer.ggml.{key} for "
                f"{len(tokens)} tokens; it is damaged, convert the model again"
            )
    return GgufVocabulary(
        kind="gpt2" if kind == "gpt2" else "llama",
        tokens=tokens,
        types=types,
        scores=scores,
        merges=keys.texts("tokenizer.ggml.merges"),
    )


def _check_unique(tokens: tuple[str, ...]) -> None:
    seen: dict[str, int] = {}
    for number, text in enumerate(tokens):
        first = seen.setdefault(text, number)
        if first != number:
            raise UnreadableInput(
                f"the GGUF file's tokens {first} and {number} are both {text!r}, which "
                "tokenizer.json cannot say; convert the model again"
            )
