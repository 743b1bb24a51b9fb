r"""Which of llama.cpp's pre-tokenizers splits text as tokenizer.json does.

llama.cpp names pre-tokenizers; each is a list of regular expressions applied one after the other
(``src/llama-vocab.cpp``, ``llm_tokenizer_bpe``). tokenizer.json spells its own out, so the two are
compared as lists, spelling variants aside. llama.cpp's own converter recognises a tokenizer by
hashing what it makes of a test string, which fails for every tokenizer trained anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qconv.errors import Unsupported

from ._tokenizer_files import mapping, sequence

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = _SHORT + _WORDS + r"|\p{N}{1,3}" + _SIGNS + _SPACES
_QWEN2 = _SHORT + _WORDS + r"|\p{N}" + _SIGNS + _SPACES
_QWEN35 = (
    _SHORT + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SLASHED = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = f"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*" + r"|\p{N}" + _SLASHED + _SPACES
_GPT4O = (
    f"{_LEAD}{_UPPER}*{_LOWER}+{_SHORT}?|{_LEAD}{_UPPER}+{_LOWER}*{_SHORT}?"
    r"|\p{N}{1,3}" + _SLASHED + _SPACES
)
_SEED = _SHORT + _WORDS + r"|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + _SPACES
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
).replace('\\"', '"') + _SPACES
_DIGIT, _DIGITS = r"\p{N}", r"\p{N}+"
_CODER_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

#: Splits, and whether whole words are looked up before merging -> llama.cpp's name.
_NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGIT, _GPT2), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    ((_TEKKEN,), True): "tekken",
    ((_GPT4O,), False): "gpt-4o",
    ((_SEED,), False): "seed-coder",
    ((r"\p{N}{1,3}", _CJK, _DEEPSEEK3), False): "deepseek-v3",
    (
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CODER_CJK, _DIGIT),
        False,
    ): "deepseek-coder",
}

#: Ways of writing the same splits. Possessive quantifiers change speed only in these patterns.
_VARIANTS = (
    ("\r", r"\r"),
    ("\n", r"\n"),
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _SHORT),
    ("'(?i:[sdmt]|ll|ve|re)", _SHORT),
    ("?+", "?"),
    ("++", "+"),
    ("*+", "*"),
)


def pretokenizer_name(
    tokenizer: Mapping[str, Any], *, ignore_merges: bool, all_merged: Callable[[], bool]
) -> str:
    """llama.cpp's name for the splits of tokenizer.json.

    ignore_merges: whether whole words are looked up before merging
    all_merged: whether merges reach every token, so that it does not matter

    Raises:
        Unsupported: the normalizer or the splits are none that llama.cpp has.
    """
    _refuse_normalizer(tokenizer.get("normalizer"))
    splits = tuple(_splits(tokenizer.get("pre_tokenizer")))
    name = _known(splits, ignore_merges)
    other = _known(splits, not ignore_merges)
    if name is not None:
        return name
    if other is not None and all_merged():
        return other
    found = ", then ".join(repr(split) for split in splits)
    raise Unsupported(
        f"tokenizer.json splits text by {found or 'nothing'} (ignore_merges={ignore_merges}), "
        f"which matches none of the pre-tokenizers {', '.join(sorted(set(_NAMES.values())))}; "
        "if llama.cpp has it under another name, give pre=NAME"
    )


def _refuse_normalizer(node: object) -> None:
    """Composing characters (NFC) is let pass: llama.cpp leaves it to the caller for such models."""
    if node is None:
        return
    fields = mapping(node, "tokenizer.json: normalizer")
    if fields.get("type") == "Sequence":
        for child in sequence(fields.get("normalizers"), "tokenizer.json: normalizers"):
            _refuse_normalizer(child)
    elif fields.get("type") != "NFC":
        raise Unsupported(
            f"tokenizer.json: normalizer {fields.get('type')!r} changes text before it is split, "
            "which llama.cpp's byte-level BPE does not; give pre=NAME to write it all the same"
        )


def _splits(node: object) -> Iterator[str]:
    """The splits in the order they apply; what cannot be expressed so is named in brackets."""
    fields = mapping(node, "tokenizer.json: pre_tokenizer")
    kind = fields.get("type")
    if kind == "Sequence":
        for child in sequence(fields.get("pretokenizers"), "tokenizer.json: pretokenizers"):
            yield from _splits(child)
    elif kind == "ByteLevel":
        if fields.get("add_prefix_space", True):
            yield "<ByteLevel with a space before the text>"
        if fields.get("use_regex", True):
            yield _GPT2
    elif kind == "Digits":
        yield _DIGIT if fields.get("individual_digits") else _DIGITS
    elif kind == "Split":
        yield _split(fields)
    elif kind is not None:
        yield f"<{kind}>"


def _split(fields: Mapping[str, Any]) -> str:
    pattern = mapping(fields.get("pattern"), "tokenizer.json: pattern")
    behavior, invert = fields.get("behavior"), bool(fields.get("invert"))
    # keeping matches as pieces: the gaps between them are pieces too, or there are none
    if (behavior, invert) not in (("Isolated", False), ("Removed", True)):
        return f"<Split {behavior}, invert={invert}>"
    if "Regex" in pattern:
        return str(pattern["Regex"])
    return re.escape(str(pattern.get("String")))


def _known(splits: tuple[str, ...], ignore_merges: bool) -> str | None:  # noqa: FBT001
    wanted = [_canonical(split) for split in splits]
    for (known, whole_words), name in _NAMES.items():
        if whole_words == ignore_merges and [_canonical(split) for split in known] == wanted:
            return name
    return None


def _canonical(split: str) -> str:
    for variant, canonical in _VARIANTS:
        split = split.replace(variant, canonical)
    return split
