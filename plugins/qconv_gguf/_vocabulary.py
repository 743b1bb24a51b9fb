"""A vocabulary as GGUF holds it, and the checks that llama.cpp makes by aborting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Literal

from qconv.errors import UnreadableInput, Unsupported

from ._container import Value, ValueType, array, boolean, string

if TYPE_CHECKING:
    from ._tokenizer_files import AddedToken


class TokenType(IntEnum):
    """What a token is to llama.cpp (``llama.h``, ``llama_token_type``)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An entry. score: SentencePiece merges the pair with the highest score first."""

    text: str
    type: TokenType = TokenType.NORMAL
    score: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens by id, and how text becomes tokens.

    kind: llama.cpp's ``gpt2`` (byte-level BPE) or ``llama`` (SentencePiece)
    pre: name of the pre-tokenizer
    merges: pairs ``left right``, best first (BPE)
    add_space_prefix: whether text gets a leading space (SentencePiece)
    """

    kind: Literal["gpt2", "llama"]
    pre: str
    tokens: tuple[Token, ...]
    merges: tuple[str, ...] = ()
    add_space_prefix: bool | None = None

    def metadata(self) -> dict[str, Value]:
        """The keys ``tokenizer.ggml.*`` of the vocabulary itself."""
        texts = [token.text for token in self.tokens]
        types = [int(token.type) for token in self.tokens]
        values = {
            "tokenizer.ggml.model": string(self.kind),
            "tokenizer.ggml.pre": string(self.pre),
            "tokenizer.ggml.tokens": array(ValueType.STRING, texts),
            "tokenizer.ggml.token_type": array(ValueType.INT32, types),
        }
        if self.kind == "llama":
            scores = [token.score for token in self.tokens]
            values["tokenizer.ggml.scores"] = array(ValueType.FLOAT32, scores)
        else:
            values["tokenizer.ggml.merges"] = array(ValueType.STRING, self.merges)
        if self.add_space_prefix is not None:
            values["tokenizer.ggml.add_space_prefix"] = boolean(self.add_space_prefix)
        return values


def number_tokens(
    base: dict[int, Token], added: Sequence[AddedToken], rows: int, score: float = 0.0
) -> tuple[Token, ...]:
    """Every id below ``rows`` gets a token: from ``base``, overruled by ``added``, else padding.

    rows: rows of the embedding
    score: of added tokens and padding

    Raises:
        Unsupported: an id has no row in the embedding, or two ids share a text.
    """
    tokens = dict(base)
    for token in added:
        known = base.get(token.id)
        keep = known is not None and known.type in (TokenType.UNKNOWN, TokenType.BYTE)
        tokens[token.id] = known if keep and known else _added(token, score)
    beyond = sorted(number for number in tokens if number >= rows)
    if beyond:
        raise Unsupported(
            f"the tokenizer's token {tokens[beyond[0]].text!r} has id {beyond[0]}, but the "
            f"embedding has {rows} rows; resize the embedding or remove the "
            f"{len(beyond)} tokens from {rows} on"
        )
    padding = (Token(text=f"[PAD{n}]", type=TokenType.UNUSED, score=score) for n in range(rows))
    numbered = tuple(tokens.get(n, pad) for n, pad in enumerate(padding))
    _check_unique(numbered)
    return numbered


def _added(token: AddedToken, score: float) -> Token:
    if token.special or _looks_special(token.content):
        return Token(text=token.content, type=TokenType.CONTROL, score=score)
    # llama.cpp looks for these in the text as it comes, before spaces are marked
    text = token.content.replace("\u2581", " ")
    return Token(text=text, type=TokenType.USER_DEFINED, score=score)


def _looks_special(text: str) -> bool:
    """Whether llama.cpp's converter takes the token for a control token whatever its flag says."""
    framed = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
    return text in {"<pad>", "<mask>", "<2mass>", "[@BOS@]"} or any(
        text.startswith(opening) and text.endswith(closing) for opening, closing in framed
    )


def _check_unique(tokens: Sequence[Token]) -> None:
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens):
        first = seen.setdefault(token.text, number)
        if not token.text or first != number:
            raise UnreadableInput(
                f"the tokenizer's ids {first} and {number} share the text {token.text!r}; "
                "llama.cpp needs every token's text once, and none empty: correct the tokenizer"
            )
