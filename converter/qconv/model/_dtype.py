"""In which arithmetic the forward pass runs: ``--dtype``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.errors import UsageError

if TYPE_CHECKING:
    import torch

_DTYPES = ("float32", "bfloat16", "float16")


def resolve_dtype(dtype: str) -> torch.dtype:
    """The dtype of the arithmetic; ``auto`` is float32 everywhere, so that devices agree.

    Raises:
        UsageError: another word.
    """
    import torch

    if dtype == "auto":
        return torch.float32
    if dtype not in _DTYPES:
        raise UsageError(f"--dtype {dtype}: must be auto, {', '.join(_DTYPES)}")
    found: torch.dtype = getattr(torch, dtype)
    return found
