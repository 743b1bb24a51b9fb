r"""How the pre-tokenizers that llama.cpp names split text.

Each is a list of regular expressions, applied one after the other (``src/llama-vocab.cpp``,
``llm_tokenizer_bpe``); tokenizer.json spells them out.
"""

from __future__ import annotations

from dataclasses import dataclass

from qconv.errors import Unsupported

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = _SHORT + _WORDS + r"|\p{N}{1,3}" + _SIGNS + _SPACES
_QWEN2 = _SHORT + _WORDS + r"|\p{N}" + _SIGNS + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SLASHED = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = f"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*" + r"|\p{N}" + _SLASHED + _SPACES
_SEED = _SHORT + _WORDS + r"|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + _SPACES
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
).replace('\\"', '"') + _SPACES
_CODER_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Splitting:
    """How text becomes words.

    splits: regular expressions whose matches, and the gaps between them, are pieces
    whole_words: whether a word that is a token is taken whole, before any merging
    composes: whether characters are composed first (NFC)
    """

    splits: tuple[str, ...]
    whole_words: bool = False
    composes: bool = False


_GPT2_LIKE = Splitting(splits=(_GPT2,))
_DIGITS_APART = Splitting(splits=(r"\p{N}", _GPT2))
_LLAMA3_LIKE = Splitting(splits=(_LLAMA3,), whole_words=True)

#: By llama.cpp's name, as tests compare with llama.cpp itself.
_RULES = {
    "gpt-2": _GPT2_LIKE,
    "phi-2": _GPT2_LIKE,
    "olmo": _GPT2_LIKE,
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "command-r": _DIGITS_APART,
    "llama-bpe": _LLAMA3_LIKE,
    "llama3": _LLAMA3_LIKE,
    "llama-v3": _LLAMA3_LIKE,
    "falcon3": _LLAMA3_LIKE,
    "pixtral": _LLAMA3_LIKE,
    "smaug-bpe": Splitting(splits=(_LLAMA3,)),
    "dbrx": Splitting(splits=(_LLAMA3,)),
    "qwen2": Splitting(splits=(_QWEN2,), composes=True),
    "deepseek-r1-qwen": Splitting(splits=(_QWEN2,)),
    "stablelm2": Splitting(splits=(_QWEN2,)),
    "tekken": Splitting(splits=(_TEKKEN,), whole_words=True),
    "seed-coder": Splitting(splits=(_SEED,)),
    "deepseek-v3": Splitting(splits=(r"\p{N}{1,3}", _CJK, _DEEPSEEK3)),
    "deepseek-coder": Splitting(
        splits=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CODER_CJK, r"\p{N}")
    ),
}


def splitting(name: str) -> Splitting:
    """The splitting that llama.cpp calls ``name``.

    Raises:
        Unsupported: it is none of those known here.
    """
    if name not in _RULES:
        raise Unsupported(
            f"the GGUF file's tokenizer.ggml.pre {name!r} is not translated to a tokenizer.json, "
            f"only {', '.join(sorted(_RULES))}; start from the model's own checkpoint"
        )
    return _RULES[name]
