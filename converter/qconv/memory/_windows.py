"""How far back each layer looks, where it does not look at everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qconv.memory._text import TextConfig

#: Families of which every n-th layer sees everything and the others a window, where config.json
#: has no list of kinds; n, and whether the first of each n is the one.
_EVERY = {
    "gemma2": (2, False),
    "gemma3_text": (6, False),
    "gemma3n_text": (5, False),
    "gemma4_text": (6, False),
    "cohere2": (4, False),
    "olmo3": (4, False),
    "exaone4": (4, False),
    "gpt_oss": (2, False),
    "llama4_text": (4, False),
    "modernbert": (3, True),
}

#: Families whose layers all have the window that config.json gives, if it gives one.
_ALL = frozenset({"mistral", "mixtral", "phi3", "phimoe", "starcoder2", "ministral"})


def windows_of(text: TextConfig, kinds: Sequence[str], notes: list[str]) -> list[int | None]:
    """The window of every layer; None for those that look at everything.

    notes: what had to be assumed is added to these
    """
    numbers = text.numbers
    if "sliding_attention" in kinds or "chunked_attention" in kinds:
        window = numbers.find("sliding_window", "attention_window_size", "local_attention")
        chunk = numbers.find("attention_chunk_size")
        known = {"sliding_attention": window, "chunked_attention": chunk}
        return [known.get(kind) for kind in kinds]
    key = "attention_chunk_size" if text.family == "llama4_text" else "sliding_window"
    window = numbers.find(key)
    if not window or text.values.get("use_sliding_window") is False or _listed(text):
        return [None] * len(kinds)
    return _by_family(text, len(kinds), window, notes)


def _listed(text: TextConfig) -> bool:
    """Whether kinds were listed, and none of them slides."""
    return bool(text.values.get("layer_types") or text.values.get("layers_block_type"))


def _by_family(text: TextConfig, layers: int, window: int, notes: list[str]) -> list[int | None]:
    config, family = text.values, text.family
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    if isinstance(pattern, str):  # EXAONE 4: "LLLG", again and again
        return [None if pattern[index % len(pattern)] == "G" else window for index in range(layers)]
    if pattern is not None or family in _EVERY:
        every, first = _EVERY.get(family, (0, False))
        if pattern is not None:
            every = text.numbers.whole("sliding_window_pattern", pattern)
        every = max(1, every)
        full = 0 if first else every - 1
        return [None if index % every == full else window for index in range(layers)]
    if family.startswith("qwen") and "max_window_layers" in config:
        start = text.numbers.need("max_window_layers")
        return [window if index >= start else None for index in range(layers)]
    if family in _ALL:
        return [window] * layers
    notes.append(
        f"sliding_window {window} is left out of account: which layers of {family!r} have it is "
        "not known"
    )
    return [None] * layers
