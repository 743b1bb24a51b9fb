"""What a tokenizer is, as data: vocabulary in order, merges, special tokens, chat template.

Read from the files beside the weights or from the metadata of a GGUF, without running either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qconv.checkpoint import GgufValue

#: Special tokens, by their names in tokenizer_config.json and after ``tokenizer.ggml.``.
_SPECIAL = {"bos_token": "bos_token_id", "eos_token": "eos_token_id"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """A tokenizer. None, or nothing, where its files do not say.

    tokens: text of every token, by id
    merges: pairs of byte-pair encoding, first to last, joined by a blank
    special: ids of ``bos_token`` and ``eos_token``
    template: of conversations
    """

    tokens: Mapping[int, str]
    merges: tuple[str, ...] | None
    special: Mapping[str, int]
    template: str | None


def facts_of_files(files: Mapping[str, bytes]) -> TokenizerFacts | None:
    """The tokenizer of companion files; None where there is no tokenizer.json, or a damaged one."""
    parsed = _json(files.get("tokenizer.json"))
    if not parsed:
        return None
    model = parsed.get("model")
    tokens = _vocabulary(model if isinstance(model, dict) else {})
    for each in parsed.get("added_tokens") or ():
        if isinstance(each, dict) and isinstance(each.get("id"), int):
            tokens[each["id"]] = str(each.get("content"))
    config = _json(files.get("tokenizer_config.json"))
    ids = {text: number for number, text in tokens.items()}
    named = {kind: _text(config.get(kind)) for kind in _SPECIAL}
    return TokenizerFacts(
        tokens=tokens,
        merges=_merges(model if isinstance(model, dict) else {}),
        special={kind: ids[text] for kind, text in named.items() if text in ids},
        template=_template(files, config),
    )


def facts_of_gguf(metadata: Mapping[str, GgufValue]) -> TokenizerFacts | None:
    """The tokenizer of a GGUF's metadata; None where there is none."""
    values = {key: each.value for key, each in metadata.items()}
    tokens = values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, (list, tuple)):
        return None
    merges: Any = values.get("tokenizer.ggml.merges")
    ids = {kind: values.get(f"tokenizer.ggml.{key}") for kind, key in _SPECIAL.items()}
    template = values.get("tokenizer.chat_template")
    return TokenizerFacts(
        tokens=dict(enumerate(map(str, tokens))),
        merges=None if merges is None else tuple(map(str, merges)),
        special={kind: each for kind, each in ids.items() if isinstance(each, int)},
        template=template if isinstance(template, str) else None,
    )


def _vocabulary(model: Mapping[str, Any]) -> dict[int, str]:
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        return {number: text for text, number in vocabulary.items() if isinstance(number, int)}
    if isinstance(vocabulary, list):  # Unigram: pairs of a piece and its score
        return {at: str(each[0]) for at, each in enumerate(vocabulary) if isinstance(each, list)}
    return {}


def _merges(model: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Older files join the two halves by a blank, newer ones list them."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        return None
    return tuple(" ".join(each) if isinstance(each, list) else str(each) for each in merges)


def _template(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode("utf-8", "replace")
    said = config.get("chat_template")
    if isinstance(said, list):  # several by name
        named = {each.get("name"): each.get("template") for each in said if isinstance(each, dict)}
        said = named.get("default")
    return said if isinstance(said, str) else None


def _text(said: object) -> str | None:
    """A token, which may be spelt out as an object."""
    if isinstance(said, dict):
        said = said.get("content")
    return said if isinstance(said, str) else None


def _json(data: bytes | None) -> dict[str, Any]:
    try:
        values = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
