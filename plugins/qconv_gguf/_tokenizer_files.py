"""The tokenizer's files beside a safetensors checkpoint, parsed once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qconv.errors import UnreadableInput

_LOOKED_FOR = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A token that is cut out of text before anything else happens to it."""

    id: int
    content: str
    special: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """What the files hold; empty mappings for those that are not there.

    tokenizer: tokenizer.json
    config: tokenizer_config.json
    generation: generation_config.json
    sentencepiece: tokenizer.model, or None
    templates: chat templates by name, ``default`` first
    """

    tokenizer: Mapping[str, Any]
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    sentencepiece: bytes | None
    added: tuple[AddedToken, ...]
    templates: Mapping[str, str]


def read_tokenizer_files(files: Mapping[str, bytes]) -> TokenizerFiles:
    """Parse the files that tokenizers come in.

    Raises:
        UnreadableInput: there is no tokenizer, or a file is not what it should be.
    """
    if not any(name in files for name in _LOOKED_FOR):
        raise UnreadableInput(
            f"no tokenizer beside the weights: looked for {' and '.join(_LOOKED_FOR)}; "
            "copy it there, GGUF files carry the tokenizer"
        )
    tokenizer = _object(files, "tokenizer.json")
    config = _object(files, "tokenizer_config.json")
    return TokenizerFiles(
        tokenizer=tokenizer,
        config=config,
        generation=_object(files, "generation_config.json"),
        sentencepiece=files.get("tokenizer.model"),
        added=_added_tokens(tokenizer, config, _object(files, "added_tokens.json")),
        templates=_templates(files, config),
    )


def mapping(value: Any, what: str) -> Mapping[str, Any]:  # noqa: ANN401 -- parsed JSON
    """``value`` if it is a JSON object; None counts as empty.

    Raises:
        UnreadableInput: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UnreadableInput(f"{what} is {type(value).__name__}, not a JSON object; correct it")
    return value


def sequence(value: Any, what: str) -> Sequence[Any]:  # noqa: ANN401 -- parsed JSON
    """``value`` if it is a JSON array; None counts as empty.

    Raises:
        UnreadableInput: it is something else.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise UnreadableInput(f"{what} is {type(value).__name__}, not a JSON array; correct it")
    return value


def _object(files: Mapping[str, bytes], name: str) -> Mapping[str, Any]:
    if name not in files:
        return {}
    try:
        return mapping(json.loads(files[name]), name)
    except (ValueError, RecursionError) as error:
        raise UnreadableInput(f"{name}: not valid JSON ({error}); copy it again") from error


def _added_tokens(
    tokenizer: Mapping[str, Any], config: Mapping[str, Any], legacy: Mapping[str, Any]
) -> tuple[AddedToken, ...]:
    """By id, from the newest of the places where they have been kept over the years."""
    found: dict[int, AddedToken] = {}
    for content, number in legacy.items():
        _add(found, number, {"content": content}, "added_tokens.json")
    for number, entry in mapping(
        config.get("added_tokens_decoder"), "added_tokens_decoder"
    ).items():
        _add(found, number, entry, "tokenizer_config.json: added_tokens_decoder")
    where = "tokenizer.json: added_tokens"
    for entry in sequence(tokenizer.get("added_tokens"), where):
        _add(found, mapping(entry, where).get("id"), entry, where)
    return tuple(found[number] for number in sorted(found))


def _add(found: dict[int, AddedToken], number: object, entry: object, where: str) -> None:
    fields = mapping(entry, where)
    content = fields.get("content")
    try:
        token_id = int(number)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        token_id = -1
    if token_id < 0 or not isinstance(content, str):
        raise UnreadableInput(
            f"{where}: id {number!r} with content {content!r} is not a token; correct it"
        )
    special = bool(fields.get("special", False))
    found[token_id] = AddedToken(id=token_id, content=content, special=special)


def _templates(files: Mapping[str, bytes], config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates: the newest place wins, as in transformers."""
    templates: dict[str, str] = {}
    stated: Any = config.get("chat_template")
    if stated is None:
        stated = _object(files, "chat_template.json").get("chat_template")
    if isinstance(stated, str):
        templates["default"] = stated
    elif isinstance(stated, list):
        for entry in stated:
            fields = mapping(entry, "chat_template")
            templates[str(fields.get("name"))] = str(fields.get("template"))
    if "chat_template.jinja" in files:
        templates["default"] = _text(files, "chat_template.jinja")
    return dict(sorted(templates.items(), key=lambda item: item[0] != "default"))


def _text(files: Mapping[str, bytes], name: str) -> str:
    try:
        return files[name].decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{name}: not UTF-8 text ({error}); copy it again") from error
