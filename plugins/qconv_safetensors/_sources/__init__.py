"""Quantized checkpoints read back: one module per family, registered here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from qconv.plugin import SourceSpec

from ._families import is_awq, is_bitsandbytes, is_compressed_tensors, is_fp8, is_gptq

if TYPE_CHECKING:
    from qconv.plugin import Source

__all__ = ["source_specs"]


def source_specs() -> Iterator[SourceSpec]:
    """The families this plugin reads."""
    for name, summary, recognizes, load in (
        (
            "compressed-tensors",
            "packed integers, INT8 and FP8 as llm-compressor writes them",
            is_compressed_tensors,
            _load_compressed_tensors,
        ),
        ("gptq", "GPTQ, versions 1 and 2, of 2, 3, 4 and 8 bits", is_gptq, _load_gptq),
        ("awq", "AWQ in the GEMM layout", is_awq, _load_awq),
        ("fp8", "FP8 with scales per tensor or 128x128 block", is_fp8, _load_fp8),
        ("bitsandbytes", "bitsandbytes NF4 and FP4", is_bitsandbytes, _load_bitsandbytes),
    ):
        yield SourceSpec(
            name=name, summary=summary, recognizes=recognizes, load=load, api_version=1
        )


def _load_compressed_tensors() -> Callable[[], Source]:
    from ._compressed_tensors import CompressedTensorsSource

    return CompressedTensorsSource


def _load_gptq() -> Callable[[], Source]:
    from ._gptq import GptqSource

    return GptqSource


def _load_awq() -> Callable[[], Source]:
    from ._awq import AwqSource

    return AwqSource


def _load_fp8() -> Callable[[], Source]:
    from ._fp8 import Fp8Source

    return Fp8Source


def _load_bitsandbytes() -> Callable[[], Source]:
    from ._bitsandbytes import BitsAndBytesSource

    return BitsAndBytesSource
