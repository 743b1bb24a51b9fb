"""Hugging Face checkpoints: quantized as vLLM and transformers load them, or in plain floats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.plugin import BackendSpec, FormatSpec, OptionSpec, hookimpl

from ._sources import source_specs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from qconv.plugin import Backend, SourceSpec

__all__ = ["qconv_backends", "qconv_sources"]

_FORMATS = (
    ("int4", "compressed-tensors, 4-bit weights in groups, with zero-points: for vLLM"),
    ("int8", "compressed-tensors, 8-bit weights; inputs too after smoothquant"),
    ("fp8", "compressed-tensors, FP8 (E4M3) weights, inputs FP8 by token"),
    ("gptq", "GPTQ (v1): 4-bit weights in groups, no zero-points"),
    ("gptq_v2", "GPTQ v2: as v1, with zero-points stored as they are"),
    ("awq", "AWQ (GEMM): 4-bit weights in groups, with zero-points"),
    ("nf4", "bitsandbytes NF4: 4-bit normal floats in blocks of 64"),
    ("fp4", "bitsandbytes FP4: 4-bit floats in blocks of 64"),
    ("bf16", "plain bfloat16"),
    ("fp16", "plain 16-bit floats"),
    ("fp32", "plain 32-bit floats"),
)

#: vLLM reads bitsandbytes by a plugin of its own only.
_RUNTIMES = {"nf4": ("transformers",), "fp4": ("transformers",)}

_OPTIONS = (
    OptionSpec(name="bits", summary="bits per code: 2 to 8, as far as the layout allows"),
    OptionSpec(name="group_size", summary="columns per scale: 32, 64, 128 or channel"),
    OptionSpec(name="symmetric", summary="no zero-points", choices=("true", "false")),
    OptionSpec(
        name="scope",
        summary="what shares an FP8 scale",
        choices=("channel", "tensor", "block"),
    ),
    OptionSpec(
        name="activations",
        summary="whether the runtime quantizes inputs, scales found as it goes",
        choices=("dynamic", "none"),
    ),
    OptionSpec(
        name="double_quant",
        summary="bitsandbytes: scales are quantized themselves",
        choices=("true", "false"),
    ),
    OptionSpec(
        name="indivisible",
        summary="rows that groups do not divide: refused, or kept in float",
        choices=("refuse", "float"),
    ),
    OptionSpec(name="shard_size", summary="largest file: 5GB, 500MB"),
    OptionSpec(name="serve", summary="check shards for a runtime: vllm:tp=4"),
    OptionSpec(
        name="search",
        summary="how scales are found: of least error, or of the largest magnitude",
        choices=("search", "absmax"),
    ),
)


@hookimpl
def qconv_backends() -> Iterator[BackendSpec]:
    """Offer safetensors."""
    yield BackendSpec(
        name="safetensors",
        summary="Hugging Face checkpoints for vLLM, SGLang and transformers",
        formats=tuple(
            FormatSpec(
                name=name, summary=summary, runtimes=_RUNTIMES.get(name, ("vllm", "transformers"))
            )
            for name, summary in _FORMATS
        ),
        options=_OPTIONS,
        recognizes=_recognizes,
        load=_load,
        api_version=1,
    )


@hookimpl
def qconv_sources() -> Iterator[SourceSpec]:
    """Offer to read quantized checkpoints."""
    yield from source_specs()


def _recognizes(path: Path) -> bool:
    """A folder with weights and a config, or a file of the weights in it."""
    if path.is_file():
        return path.name.endswith((".safetensors", ".safetensors.index.json"))
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def _load() -> Callable[[], Backend]:
    from ._backend import SafetensorsBackend

    return SafetensorsBackend
