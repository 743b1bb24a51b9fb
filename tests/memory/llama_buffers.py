"""llama.cpp's own account of its memory: what it prints while it makes a context."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

MIB = 2**20

#: Bytes into ``llama_context_params`` (llama.h), checked against the defaults below.
N_CTX, N_BATCH, N_UBATCH, N_SEQ, TYPE_K, TYPE_V, FLAGS, SWA_FULL = 0, 4, 8, 12, 104, 108, 136, 140
CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}

_SIZE = re.compile(
    r"^\S+\s+CPU(?:_Mapped)?\s+(?P<what>.+?) buffer size =\s+(?P<mib>[\d.]+) MiB", re.MULTILINE
)


def buffers(
    path: Path,
    *,
    context: int,
    step: int = 512,
    batch: int = 1,
    cache_type: str = "f16",
) -> Mapping[str, float]:
    """MiB of each kind of buffer: ``KV``, ``RS`` (states), ``compute``, ``model``, ``output``.

    context: tokens of all sequences together, as llama.cpp counts
    """
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'qconv[llama-cpp]'")
    from qconv_gguf import _llama_cpp

    library, log = _llama_cpp._library()
    said: list[str] = []
    callback = _llama_cpp._LOG_CALLBACK(lambda level, text, _: said.append((text or b"").decode()))
    library.llama_log_set(callback, None)
    try:
        model = library.llama_model_load_from_file(
            str(path).encode(), library.llama_model_default_params()
        )
        assert model, "".join(said)
        params = library.llama_context_default_params()
        flags = [_byte(params, FLAGS + n) for n in range(6)]
        if (_int(params, TYPE_K), _int(params, TYPE_V), flags) != (1, 1, [0, 1, 1, 1, 1, 0]):
            pytest.skip("llama_context_params of this build is not laid out as known here")
        values = {N_CTX: context, N_BATCH: step, N_UBATCH: step, N_SEQ: batch}
        values |= {TYPE_K: CACHE_TYPES[cache_type], TYPE_V: CACHE_TYPES[cache_type]}
        for offset, value in values.items():
            ctypes.c_int32.from_buffer(params, offset).value = value
        ctypes.c_int8.from_buffer(params, SWA_FULL).value = 0  # as llama.cpp's programs have it
        made = library.llama_init_from_model(model, params)
        assert made, "".join(said)
        library.llama_free(made)
        library.llama_model_free(model)
    finally:
        library.llama_log_set(log.callback, None)
    sizes: dict[str, float] = {}
    for line in _SIZE.finditer("".join(said)):
        if line["what"] != "compute" or "compute" not in sizes:
            sizes[line["what"]] = sizes.get(line["what"], 0.0) + float(line["mib"])
    return sizes


def _int(params: Any, offset: int) -> int:
    return ctypes.c_int32.from_buffer(params, offset).value


def _byte(params: Any, offset: int) -> int:
    return ctypes.c_int8.from_buffer(params, offset).value
