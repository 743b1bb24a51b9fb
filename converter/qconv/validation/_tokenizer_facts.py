"""What a tokenizer is, as data: vocabulary in order, merges, special tokens, chat template.

Read from the files beside the weights or from the metadata of a GGUF, without running either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qconv.checkpoint import GgufValue

#: Special tokens, by their names in tokenizer_config.json and after ``tokenizer.ggml.``.
_SPECIAL = {"bos_token": "bos_token_id", "eos_token": "eos_token_id"}

#: Of tokens that no text becomes: llama.cpp's ``LLAMA_TOKEN_TYPE_UNUSED``.
_UNUSED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """A tokenizer. None, or nothing, where its files do not say.

    tokens: text of every token, by id
    merges: pairs of byte-pair encoding, first to last, joined by a blank; not None where the kind
        of tokenizer needs them
    special: ids of ``bos_token`` and ``eos_token``
    states_special: it is said which these are, so that one that is not there is missing
    template: of conversations
    """

    tokens: Mapping[int, str]
    merges: tuple[str, ...] | None
    special: Mapping[str, int]
    states_special: bool
    template: str | None


def facts_of_files(files: Mapping[str, bytes]) -> TokenizerFacts | None:
    """The tokenizer of companion files; None where there is no tokenizer.json, or a damaged one."""
    parsed = _json(files.get("tokenizer.json"))
    if not parsed:
        return None
    model = parsed.get("model")
    model = model if isinstance(model, dict) else {}
    tokens = _vocabulary(model)
    for each in parsed.get("added_tokens") or ():
        if isinstance(each, dict) and isinstance(each.get("id"), int):
            tokens[each["id"]] = str(each.get("content"))
    config = _json(files.get("tokenizer_config.json"))
    ids = {text: number for number, text in tokens.items()}
    named = {kind: _text(config.get(kind)) for kind in _SPECIAL}
    return TokenizerFacts(
        tokens=tokens,
        merges=_merges(model.get("type") == "BPE", model.get("merges")),
        special={kind: ids[text] for kind, text in named.items() if text in ids},
        states_special="tokenizer_config.json" in files,
        template=template_of(files),
    )


def facts_of_gguf(metadata: Mapping[str, GgufValue]) -> TokenizerFacts | None:
    """The tokenizer of a GGUF's metadata; None where there is none."""
    values = {key: each.value for key, each in metadata.items()}
    tokens = values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, (list, tuple)):
        return None
    merges = values.get("tokenizer.ggml.merges")
    ids = {kind: values.get(f"tokenizer.ggml.{key}") for kind, key in _SPECIAL.items()}
    template = values.get("tokenizer.chat_template")
    return TokenizerFacts(
        tokens=_used(tokens, values.get("tokenizer.ggml.token_type")),
        merges=_merges(values.get("tokenizer.ggml.model") == "gpt2", merges),
        special={kind: each for kind, each in ids.items() if isinstance(each, int)},
        states_special=True,
        template=template if isinstance(template, str) else None,
    )


def _used(tokens: Sequence[object], kinds: object) -> dict[int, str]:
    """Texts by id, without what fills a vocabulary up to the rows of the embedding."""
    texts = dict(enumerate(map(str, tokens)))
    if not isinstance(kinds, (list, tuple)) or len(kinds) != len(tokens):
        return texts
    return {at: text for at, text in texts.items() if kinds[at] != _UNUSED or text != f"[PAD{at}]"}


def _vocabulary(model: Mapping[str, Any]) -> dict[int, str]:
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        return {number: text for text, number in vocabulary.items() if isinstance(number, int)}
    if isinstance(vocabulary, list):  # Unigram: pairs of a piece and its score
        return {at: str(each[0]) for at, each in enumerate(vocabulary) if isinstance(each, list)}
    return {}


def _merges(
    needed: bool,  # noqa: FBT001 - said by the kind of tokenizer
    merges: object,
) -> tuple[str, ...] | None:
    """Older files join the two halves by a blank, newer ones list them; none where some must be."""
    if not isinstance(merges, (list, tuple)):
        return () if needed else None
    return tuple(" ".join(each) if isinstance(each, list) else str(each) for each in merges)


def template_of(files: Mapping[str, bytes]) -> str | None:
    """The chat template in companion files, the default one of several; None where there is none.

    files: by name
    """
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode("utf-8", "replace")
    said = _json(files.get("tokenizer_config.json")).get("chat_template")
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
