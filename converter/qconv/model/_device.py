"""Where the forward pass runs and in which arithmetic: ``--device`` and ``--dtype``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.errors import NotEnoughResources, UsageError

if TYPE_CHECKING:
    import torch

_DTYPES = ("float32", "bfloat16", "float16")


def resolve_device(device: str) -> torch.device:
    """The device of ``auto``, ``cpu``, ``cuda`` or ``cuda:n``; ``auto`` is the first GPU, if any.

    Raises:
        UsageError: another word.
        NotEnoughResources: CUDA is asked for and absent.
    """
    import torch

    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    kind, _, number = device.partition(":")
    if device != "cpu" and (kind != "cuda" or not (number or "0").isdecimal()):
        raise UsageError(f"--device {device}: must be auto, cpu, cuda or cuda:NUMBER")
    if kind == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= found:
        raise NotEnoughResources(
            f"--device {device}: {found} CUDA devices are usable here; use --device cpu, "
            "or install a torch build for CUDA and its driver"
        )
    return torch.device("cuda", int(number or 0))


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
