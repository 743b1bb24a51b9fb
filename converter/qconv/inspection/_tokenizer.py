"""What a checkpoint's tokenizer is, as far as its files tell without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qconv.checkpoint import parse_object
from qconv.errors import UnreadableInput

if TYPE_CHECKING:
    from qconv.plugin import ModelInfo

_GGUF = "tokenizer.ggml."
_TOKEN_ID = "_token_id"  # noqa: S105 - the end of GGUF keys such as tokenizer.ggml.bos_token_id
_TOKEN = "_token"  # noqa: S105 - the end of keys such as bos_token


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSummary:
    """A tokenizer in short.

    model: ``BPE``, ``Unigram``, ... or GGUF's ``gpt2``, ``llama``, ...; None when not said
    vocab_size: tokens, added ones included; None when only a binary model tells
    special_tokens: text by role: ``bos``, ``eos``, ``unk``, ...
    chat_template: whether there is one
    """

    model: str | None
    vocab_size: int | None
    special_tokens: Mapping[str, str]
    chat_template: bool


def summarise_tokenizer(model: ModelInfo) -> tuple[TokenizerSummary | None, tuple[str, ...]]:
    """The tokenizer, None when there is none, and what is wrong with its files."""
    if model.kind == "gguf":
        return _from_gguf(model.metadata), ()
    files = _Files(model.files)
    return files.summary(), tuple(files.problems)


def _from_gguf(metadata: Mapping[str, Any]) -> TokenizerSummary | None:
    stored = metadata.get(_GGUF + "model")
    if stored is None:
        return None
    tokens = metadata[_GGUF + "tokens"].value if _GGUF + "tokens" in metadata else ()
    tokens = tokens if isinstance(tokens, tuple) else ()
    special: dict[str, str] = {}
    for key in sorted(metadata):
        index = metadata[key].value
        if not (key.startswith(_GGUF) and key.endswith(_TOKEN_ID) and isinstance(index, int)):
            continue
        if 0 <= index < len(tokens):
            special[key[len(_GGUF) : -len(_TOKEN_ID)]] = str(tokens[index])
    return TokenizerSummary(
        model=str(stored.value),
        vocab_size=len(tokens) or None,
        special_tokens=special,
        chat_template="tokenizer.chat_template" in metadata,
    )


class _Files:
    """The tokenizer files of a Hugging Face directory, parsed as far as they are sound."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self.problems: list[str] = []

    def summary(self) -> TokenizerSummary | None:
        """What the files say together."""
        if not any(name.startswith(("tokenizer", "vocab")) for name in self._files):
            return None
        tokenizer, config = self._parsed("tokenizer.json"), self._parsed("tokenizer_config.json")
        names = self._parsed("special_tokens_map.json") | config
        model, size = self._model(tokenizer)
        templates = {"chat_template.jinja", "chat_template.json"}
        return TokenizerSummary(
            model=model,
            vocab_size=size,
            special_tokens=_special(names),
            chat_template=bool(templates & self._files.keys() or config.get("chat_template")),
        )

    def _model(self, tokenizer: Mapping[str, Any]) -> tuple[str | None, int | None]:
        model = tokenizer.get("model")
        if isinstance(model, dict):
            kind = model.get("type")
            size = len(_pieces(model.get("vocab")) | _added(tokenizer.get("added_tokens")))
            return kind if isinstance(kind, str) else None, size or None
        vocab, added = self._parsed("vocab.json"), self._parsed("added_tokens.json")
        if vocab:
            return "BPE", len(vocab.keys() | added.keys())
        return ("SentencePiece" if "tokenizer.model" in self._files else None), None

    def _parsed(self, name: str) -> dict[str, Any]:
        data = self._files.get(name)
        if data is None:
            return {}
        try:
            return parse_object(data, name)
        except UnreadableInput as error:
            self.problems.append(str(error))
            return {}


def _special(names: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in sorted(names):
        value = names[key]
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith(_TOKEN) and isinstance(text, str):
            found[key[: -len(_TOKEN)]] = text
    return found


def _pieces(vocab: object) -> set[str]:
    """The texts of a vocabulary: keys of an object, or firsts of Unigram's pairs."""
    if isinstance(vocab, dict):
        return set(vocab)
    pairs = vocab if isinstance(vocab, list) else []
    return {pair[0] for pair in pairs if isinstance(pair, list) and _is_text(pair[:1])}


def _is_text(first: list[Any]) -> bool:
    return bool(first) and isinstance(first[0], str)


def _added(tokens: object) -> set[str]:
    entries = tokens if isinstance(tokens, list) else []
    texts = [entry.get("content") for entry in entries if isinstance(entry, dict)]
    return {text for text in texts if isinstance(text, str)}
