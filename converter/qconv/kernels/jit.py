"""How kernels are compiled, and cached so that no stale one ever runs. Public as ``qconv.jit``.

:func:`kernel` marks what Python calls: compiled at first use, and kept on disk by numba, in its own
places. :func:`inner` marks what only kernels call: compiled into each of them.

numba looks at the file a kernel is in to tell whether the one on disk is still good, and at that
file's size and time only. A kernel is made of several files, and a wheel may give every file the
same time, so the key under which numba keeps it also holds a digest of all files in the kernel's
folder and in this one.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache

__all__ = ["inlined", "inner", "kernel", "sources_digest"]

_njit: Any = numba.njit  # typed in some versions, and then without the options below

#: Without wrappers for Python, which would take a seventh of the time to compile. Calling one from
#: Python crashes, so tests wrap it in a kernel of their own.
inner = _njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)

#: The same, and never left as a function of its own: one that is keeps the general code it was
#: compiled to by itself in the process that compiles, and only the process that finds the kernel on
#: disk runs what the kernel made of it (measured: four times as fast).
inlined = _njit(
    error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True
)


def kernel(function: Any) -> Any:
    """Compile ``function`` at first use, for threads that run at once, with IEEE division."""
    compiled = _njit(nogil=True, error_model="numpy")(function)
    if hasattr(compiled, "enable_caching"):  # not under NUMBA_DISABLE_JIT
        compiled._cache = _KernelCache(function)  # noqa: SLF001 - what enable_caching does
    return compiled


@cache
def sources_digest(folder: Path) -> str:
    """SHA-256 of the source files in ``folder``, by name."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


class _KernelCache(FunctionCache):  # type: ignore[misc,unused-ignore]
    """numba's cache of one kernel, its keys extended by digests of the sources."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        folders = (Path(function.__code__.co_filename).parent, Path(__file__).parent)
        self._sources = tuple(sources_digest(folder) for folder in folders)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), *self._sources)
