"""GGUF, the files of llama.cpp: made from Llama checkpoints, or requantized from any GGUF."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.plugin import BackendSpec, FormatSpec, OptionSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from qconv.plugin import Backend

__all__ = ["qconv_backends"]

_FORMATS = (
    ("f32", "32-bit floats"),
    ("f16", "16-bit floats"),
    ("bf16", "bfloat16"),
    ("q8_0", "8-bit, blocks of 32: 8.5 bits per weight, next to lossless"),
    ("q4_0", "4-bit, blocks of 32, no offset: 4.5 bits per weight"),
    ("q4_1", "4-bit, blocks of 32, with offset: 5.0 bits per weight"),
    ("q5_0", "5-bit, blocks of 32, no offset: 5.5 bits per weight"),
    ("q5_1", "5-bit, blocks of 32, with offset: 6.0 bits per weight"),
    ("q2_k", "2-bit super-blocks of 256, mixed with 3 and 4 bits"),
    ("q3_k_s", "3-bit super-blocks of 256"),
    ("q3_k_m", "3-bit super-blocks of 256, mixed with 4 and 5 bits"),
    ("q3_k_l", "3-bit super-blocks of 256, mixed with 5 bits"),
    ("q4_k_s", "4-bit super-blocks of 256, some 5 bits"),
    ("q4_k_m", "4-bit super-blocks of 256, half of the sensitive tensors at 6 bits"),
    ("q5_k_s", "5-bit super-blocks of 256"),
    ("q5_k_m", "5-bit super-blocks of 256, half of the sensitive tensors at 6 bits"),
    ("q6_k", "6-bit super-blocks of 256: 6.6 bits per weight"),
)

_OPTIONS = (
    OptionSpec(
        name="search",
        summary="how block scales are searched: qconv's own search, or llama.cpp's, bit for bit",
        choices=("default", "ggml"),
    ),
    OptionSpec(
        name="pre",
        summary="llama.cpp's name of the pre-tokenizer, when tokenizer.json's is not recognised",
    ),
)


@hookimpl
def qconv_backends() -> Iterator[BackendSpec]:
    """Offer GGUF."""
    yield BackendSpec(
        name="gguf",
        summary="GGUF files for llama.cpp and everything built on it",
        formats=tuple(
            FormatSpec(name=name, summary=summary, runtimes=("llama.cpp",))
            for name, summary in _FORMATS
        ),
        options=_OPTIONS,
        recognizes=_recognizes,
        load=_load,
        api_version=1,
    )


def _recognizes(path: Path) -> bool:
    """One file."""
    return path.suffix == ".gguf" and path.is_file()


def _load() -> Callable[[], Backend]:
    from ._backend import GgufBackend

    return GgufBackend
