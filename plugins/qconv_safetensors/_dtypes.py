"""The dtype that a model computes in, and what becomes of tensors that stay float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qconv.plugin import ModelInfo

#: Torch's name of a stored float dtype.
TORCH_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

_KEYS = ("dtype", "torch_dtype")


def model_dtype(config: Mapping[str, Any], model: ModelInfo) -> str:
    """Torch dtype name: the config's, else that of most stored values.

    Runtimes go by the config, so a checkpoint stored in another dtype is cast when loaded.
    """
    for settings in (config, config.get("text_config")):
        for key in _KEYS:
            found = settings.get(key) if isinstance(settings, Mapping) else None
            name = str(found).removeprefix("torch.")
            if name in {"float32", "float16", "bfloat16"}:
                return name
    counts: dict[str, int] = {}
    for info in model.tensors.values():
        name = _float_name(model, info.dtype)
        counts[name] = counts.get(name, 0) + info.numel
    return max(sorted(counts), key=lambda name: counts[name], default="float32")


def is_integer(stored: str) -> bool:
    """Whether a stored dtype is of whole numbers or truth values."""
    return stored == "BOOL" or (stored[0] in "IU" and stored[1:].isdigit())


def _float_name(model: ModelInfo, stored: str) -> str:
    """What values of a stored dtype are computed in; a GGUF's blocks hold no more than bfloat16."""
    if stored in TORCH_FLOATS:
        return TORCH_FLOATS[stored].replace("float64", "float32")
    return "bfloat16" if model.kind == "gguf" and not is_integer(stored) else "float32"


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config of the model in another dtype: keys that state one are changed, here and within.

    dtype: torch dtype name
    """
    changed = {
        key: with_dtype(value, dtype) if isinstance(value, dict) else value
        for key, value in config.items()
    }
    for key in _KEYS:
        if key in changed:
            changed[key] = dtype
    return changed


def stating_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """:func:`with_dtype`, stated at the top if it was nowhere."""
    changed = with_dtype(config, dtype)
    if not any(key in changed for key in _KEYS):
        changed["torch_dtype"] = dtype  # read by transformers of any age
    return changed
