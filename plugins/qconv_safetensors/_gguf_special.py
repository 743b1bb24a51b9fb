"""Tokens that begin, end, pad ... a text, and the files of a checkpoint that name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._gguf_keys import Keys
    from ._gguf_vocabulary import GgufVocabulary

#: GGUF's name -> transformers'.
_NAMES = {
    "bos": "bos",
    "eos": "eos",
    "unknown": "unk",
    "seperator": "sep",  # llama.cpp's spelling
    "padding": "pad",
    "mask": "mask",
}
#: Tokens that end a text besides ``eos``: of a turn, of a message.
_ENDERS = ("eot", "eom")
_TEMPLATE = "tokenizer.chat_template"
_MOST = 2**32 - 1

#: llama.cpp's default for sampling -> generation_config.json.
_SAMPLING = {
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
}
_TOP_K = "general.sampling.top_k"


@dataclass(frozen=True, slots=True, kw_only=True)
class Specials:
    """Special tokens.

    named: ids by transformers' names: ``bos``, ``eos``, ``unk``, ...
    enders: ids of all tokens that end a text
    add_bos, add_eos: whether the tokenizer puts them around a text on its own
    templates: chat templates by name
    """

    named: Mapping[str, int]
    enders: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    templates: Mapping[str, str]

    def ids(self) -> dict[str, int]:
        """What config.json says of them."""
        return {
            f"{name}_token_id": self.named[name]
            for name in ("bos", "eos", "pad")
            if name in self.named
        }


def read_specials(keys: Keys, vocabulary: GgufVocabulary) -> Specials:
    """Read the ids. Those of no token are left out, as llama.cpp does.

    Raises:
        UnreadableInput: a value is of another kind.
    """
    count = len(vocabulary.tokens)
    named = {name: _id(keys, key, count) for key, name in _NAMES.items()}
    enders = [named["eos"], *(_id(keys, key, count) for key in _ENDERS)]
    # llama.cpp's habits where the file does not say: SentencePiece and Llama 3 begin a text
    begins = vocabulary.kind == "llama" or keys.text("tokenizer.ggml.pre", "") in _BEGIN
    return Specials(
        named={name: number for name, number in named.items() if number is not None},
        enders=tuple(dict.fromkeys(number for number in enders if number is not None)),
        add_bos=keys.flag("tokenizer.ggml.add_bos_token", default=begins),
        add_eos=keys.flag("tokenizer.ggml.add_eos_token", default=False),
        templates=_templates(keys),
    )


#: Pre-tokenizers whose texts llama.cpp begins with a token unless the file says otherwise.
_BEGIN = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "tekken"})


def tokenizer_config(
    vocabulary: GgufVocabulary, specials: Specials, context: int
) -> dict[str, Any]:
    """``tokenizer_config.json``. Several chat templates go in here, a single one into its file."""
    names = {
        f"{name}_token": vocabulary.tokens[number]
        for name, number in sorted(specials.named.items())
    }
    templates = [
        {"name": name, "template": text} for name, text in sorted(specials.templates.items())
    ]
    several = set(specials.templates) > {"default"} or (
        templates and "default" not in specials.templates
    )
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        **names,
        **({"chat_template": templates} if several else {}),
    }


def generation(keys: Keys, specials: Specials) -> dict[str, Any]:
    """``generation_config.json``: where to end, and the sampling that the file recommends."""
    values: dict[str, Any] = specials.ids()
    if len(specials.enders) > 1:
        values["eos_token_id"] = list(specials.enders)
    sampling: dict[str, Any] = {
        name: keys.positive(key) for key, name in _SAMPLING.items() if key in keys
    }
    if _TOP_K in keys:
        sampling["top_k"] = keys.whole(_TOP_K, 0, 2**31 - 1)
    if sampling:
        values |= {"do_sample": True, **sampling}
    return dict(sorted(values.items()))


def _id(keys: Keys, key: str, count: int) -> int | None:
    name = f"tokenizer.ggml.{key}_token_id"
    if name not in keys:
        return None
    number = keys.whole(name, 0, _MOST)
    return number if number < count else None


def _templates(keys: Keys) -> dict[str, str]:
    """By name; the one without a name is ``default``."""
    found = {}
    for key in keys.under(_TEMPLATE):
        if key == _TEMPLATE:
            found["default"] = keys.text(key)
        elif key.startswith(f"{_TEMPLATE}."):
            found[key.removeprefix(f"{_TEMPLATE}.")] = keys.text(key)
    return found
