"""Which tokens begin, end, pad ... a text, and which of them the tokenizer adds on its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qconv.errors import Unsupported

from ._container import Value, ValueType, array, boolean, string, uint32
from ._tokenizer_files import TokenizerFiles, mapping, sequence

if TYPE_CHECKING:
    from ._vocabulary import Vocabulary

#: Name in tokenizer_config.json -> name in GGUF.
_KEYS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",  # llama.cpp's spelling
    "pad": "padding",
    "mask": "mask",
}
#: llama.cpp's converter switches the beginning token off for vocabularies of this size (Granite).
_NO_BOS_ROWS = 49152
_EOM = "<|eom_id|>"
#: What transformers takes for a SentencePiece tokenizer that does not say.
_SENTENCEPIECE = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """What the post-processor puts around a text, None for nothing."""

    first: str | None = None
    last: str | None = None


def special_tokens(
    files: TokenizerFiles, vocabulary: Vocabulary, config: Mapping[str, Any]
) -> dict[str, Value]:
    """The keys of special tokens, of whether they are added, and chat templates.

    config: config.json

    Raises:
        Unsupported: the tokenizer frames a text in a way that llama.cpp cannot.
    """
    by_text = {token.text: number for number, token in enumerate(vocabulary.tokens)}
    frame = _frame(files.tokenizer)
    ids = _ids(files, config, by_text, frame)
    add_bos, add_eos = _added(files, vocabulary, frame)
    if add_bos and "bos" not in ids:
        raise Unsupported(
            "the tokenizer adds a beginning token, but neither tokenizer_config.json nor "
            "config.json says which; add bos_token"
        )
    values = {f"tokenizer.ggml.{name}_token_id": uint32(number) for name, number in ids.items()}
    values["tokenizer.ggml.add_bos_token"] = boolean(add_bos)
    values["tokenizer.ggml.add_eos_token"] = boolean(add_eos)
    values.update(_templates(files.templates))
    return values


def _ids(
    files: TokenizerFiles, config: Mapping[str, Any], by_text: Mapping[str, int], frame: _Frame
) -> dict[str, int]:
    """Ids by GGUF's names: as the tokenizer says, else as config.json says."""
    ids: dict[str, int] = {}
    rows = len(by_text)
    for name, key in _KEYS.items():
        stated = by_text.get(_content(files.config.get(f"{name}_token")) or "")
        candidates = [stated, *_numbers(config.get(f"{name}_token_id"))]
        candidates += _numbers(files.generation.get(f"{name}_token_id"))
        if not files.tokenizer:
            candidates.append(by_text.get(_SENTENCEPIECE.get(name, "")))
        usable = [number for number in candidates if number is not None and 0 <= number < rows]
        if usable:
            ids[key] = usable[0]
    for key, text in (("bos", frame.first), ("eos", frame.last)):
        if text is not None and text in by_text:
            ids[key] = by_text[text]
    enders = [
        *_numbers(files.generation.get("eos_token_id")),
        *_numbers(config.get("eos_token_id")),
    ]
    for number in dict.fromkeys(enders):
        if 0 <= number < rows and number not in ids.values():
            name = "eom" if by_text.get(_EOM) == number else "eot"
            ids.setdefault(name if name not in ids else "eom", number)
    return ids


def _content(entry: object) -> str | None:
    """The text of a token in tokenizer_config.json: a string, or an object that holds it."""
    if isinstance(entry, Mapping):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _numbers(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [number for number in values if isinstance(number, int)]


def _added(files: TokenizerFiles, vocabulary: Vocabulary, frame: _Frame) -> tuple[bool, bool]:
    """Whether a beginning and an end are added: as stated, else by the post-processor."""
    stated = {name: files.config.get(f"add_{name}_token") for name in ("bos", "eos")}
    framed = files.tokenizer.get("post_processor") is not None
    # without tokenizer.json there is only SentencePiece's habit, and the exception to it
    habit = vocabulary.kind == "llama" and not framed and not files.tokenizer
    habit = habit and len(vocabulary.tokens) != _NO_BOS_ROWS
    if any(isinstance(value, bool) for value in stated.values()):
        # as in transformers: a flag left out next to one given is off
        bos = stated["bos"] if isinstance(stated["bos"], bool) else habit
        return bos, stated["eos"] is True
    return (frame.first is not None or habit), frame.last is not None


def _frame(tokenizer: Mapping[str, Any]) -> _Frame:
    post = mapping(tokenizer.get("post_processor"), "tokenizer.json: post_processor")
    nested = sequence(post.get("processors"), "tokenizer.json: processors")
    frame = _Frame()
    for processor in nested if post.get("type") == "Sequence" else (post,):
        fields = mapping(processor, "tokenizer.json: post_processor")
        if fields.get("type") == "TemplateProcessing":
            frame = _template_frame(fields)
        elif fields.get("type") in {"RobertaProcessing", "BertProcessing"}:
            first, last = (
                [*sequence(fields.get(name), f"tokenizer.json: {name}"), ""][0]
                for name in ("cls", "sep")
            )
            frame = _Frame(first=str(first), last=str(last))
    return frame


def _template_frame(fields: Mapping[str, Any]) -> _Frame:
    """One token before and one after at most: all that llama.cpp can add."""
    before: list[str] = []
    after: list[str] = []
    side = before
    for item in sequence(fields.get("single"), "tokenizer.json: single"):
        entry = mapping(item, "tokenizer.json: single")
        if "Sequence" in entry:
            side = after
        else:
            side.append(str(mapping(entry.get("SpecialToken"), "SpecialToken").get("id")))
    if len(before) > 1 or len(after) > 1:
        raise Unsupported(
            f"tokenizer.json: the post-processor puts {before} before and {after} after a text; "
            "llama.cpp adds one token at each end at most: shorten the template"
        )
    return _Frame(first=before[0] if before else None, last=after[0] if after else None)


def _templates(templates: Mapping[str, str]) -> dict[str, Value]:
    values = {}
    for name, text in templates.items():
        key = "tokenizer.chat_template" if name == "default" else f"tokenizer.chat_template.{name}"
        values[key] = string(text)
    named = [name for name in templates if name != "default"]
    if named:
        values["tokenizer.chat_templates"] = array(ValueType.STRING, named)
    return values
