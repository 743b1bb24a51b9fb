"""llama.cpp's own quantizer, called through ctypes: the judge of bytes and of error."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

#: ggml type numbers (ggml.h, enum ggml_type) and bytes per block of values.
TYPES = {
    "q4_0": (2, 32, 18),
    "q4_1": (3, 32, 20),
    "q5_0": (6, 32, 22),
    "q5_1": (7, 32, 24),
    "q8_0": (8, 32, 34),
    "q2_k": (10, 256, 84),
    "q3_k": (11, 256, 110),
    "q4_k": (12, 256, 144),
    "q5_k": (13, 256, 176),
    "q6_k": (14, 256, 210),
}


@functools.cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        pytest.skip("xllamacpp is not installed: pip install 'qconv[llama-cpp]'")
    shared = sorted(Path(spec.origin).parent.glob("*.so")) + sorted(
        Path(spec.origin).parent.glob("*.pyd")
    )
    library = ctypes.CDLL(str(shared[0]))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    library.ggml_cpu_init()  # fills the float16 tables that the quantizers read
    return library


def ggml_quantize(
    name: str,
    weight: npt.NDArray[np.float32],
    importance: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.uint8]:
    """llama.cpp's bytes for ``weight`` (rows, columns): (rows, bytes per row) uint8."""
    number, block, nbytes = TYPES[name]
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    rows, columns = weight.shape
    out = np.empty((rows, columns // block * nbytes), dtype=np.uint8)
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        assert importance.shape == (columns,)
    written = _library().ggml_quantize_chunk(
        number,
        weight.ctypes.data,
        out.ctypes.data,
        0,
        rows,
        columns,
        None if importance is None else importance.ctypes.data,
    )
    assert written == out.nbytes
    return out
