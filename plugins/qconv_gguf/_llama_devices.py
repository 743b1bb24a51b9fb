"""Which devices llama.cpp is told to use, by the names that its backends give them.

https://github.com/ggml-org/llama.cpp/blob/master/ggml/include/ggml-backend.h: ``CUDA0`` is CUDA's
first, ``Vulkan0`` and ``Metal`` are of other backends. ``llama_model_params`` begins with a list of
devices that a null pointer ends; an empty one leaves the CPU alone, which else hands large products
to a GPU even where no layer is on it.
"""

from __future__ import annotations

import ctypes
from typing import Any

from qconv.errors import BrokenPlugin

_POINTER = ctypes.c_void_p

#: What older libraries lack. Function -> result and arguments.
_ASKED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_backend_dev_count": (ctypes.c_size_t, ()),
    "ggml_backend_dev_get": (_POINTER, (ctypes.c_size_t,)),
    "ggml_backend_dev_name": (ctypes.c_char_p, (_POINTER,)),
}


def use_devices(params: ctypes.Structure, devices: list[int]) -> Any:  # noqa: ANN401
    """Let ``llama_model_params`` name these, by address, and no others.

    Returns what must be kept as long as the parameters are: they point to it.
    """
    kept = (_POINTER * (len(devices) + 1))(*devices, None)
    _POINTER.from_buffer(params).value = ctypes.addressof(kept)
    return kept


def cuda_device(library: ctypes.CDLL, number: int) -> int | None:
    """The address of a CUDA device; None where the library is too old to name its devices.

    Raises:
        BrokenPlugin: there is none of that number.
    """
    named = _named(library)
    if named is None:
        return None
    if f"CUDA{number}" not in named:
        raise BrokenPlugin(
            f"llama.cpp (xllamacpp) has no device CUDA{number} for device cuda:{number}, but "
            f"{', '.join(named) or 'none'}; choose one that it has, install a build with CUDA, or "
            "compute on the CPU (--device cpu)"
        )
    return named[f"CUDA{number}"]


def _named(library: ctypes.CDLL) -> dict[str, int] | None:
    """The devices of all backends, by name."""
    try:
        for name, (result, arguments) in _ASKED.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError:
        return None
    found = {}
    for index in range(library.ggml_backend_dev_count()):
        device = library.ggml_backend_dev_get(index)
        found[library.ggml_backend_dev_name(device).decode("utf-8", "replace")] = device
    return found
