"""qconv: a plugin-based, quantizing model-format converter.

>>> import qconv
>>> qconv.convert("models/smollm2", to=["gguf:q4_k_m"], out="out")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv._version import __version__

if TYPE_CHECKING:
    from qconv.api import convert, inspect, plan

__all__ = ["__version__", "convert", "inspect", "plan"]


def __getattr__(name: str) -> object:
    """Load the API when it is first used, so that ``import qconv`` costs nothing."""
    if name in {"convert", "inspect", "plan"}:
        from qconv import api

        return getattr(api, name)
    raise AttributeError(f"module 'qconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
