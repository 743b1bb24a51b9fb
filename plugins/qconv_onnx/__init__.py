"""ONNX: graphs from transformers that onnxruntime runs, with the codes that a method computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.plugin import BackendSpec, FormatSpec, OptionSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from qconv.plugin import Backend

__all__ = ["qconv_backends"]

_FORMATS = (
    ("fp32", "32-bit floats"),
    ("fp16", "16-bit floats"),
    ("w8", "8-bit weights in blocks (MatMulNBits)"),
    ("int4", "4-bit weights in blocks (MatMulNBits)"),
    ("int4_qdq", "4-bit weights in blocks (DequantizeLinear, in the ONNX standard)"),
    ("int8", "w8 for decoders, w8a8 for encoders: what is faster"),
    ("w8a8", "8-bit weights by channel, inputs rounded to 8 bits by token (MatMulIntegerToFloat)"),
    (
        "int8_static",
        "as w8a8, but inputs on a scale and zero-point of calibration (QuantizeLinear)",
    ),
)

_OPTIONS = (
    OptionSpec(
        name="kv_cache",
        summary="decoders take and give keys and values of earlier tokens",
        choices=("true", "false"),
    ),
    OptionSpec(name="group_size", summary="columns per scale", choices=("32", "64", "128")),
    OptionSpec(name="symmetric", summary="no zero-points", choices=("true", "false")),
    OptionSpec(
        name="accuracy_level",
        summary="MatMulNBits multiplies in float32 (1), or with inputs rounded to 8 bits (4)",
        choices=("1", "4"),
    ),
    OptionSpec(
        name="head",
        summary="bits of the output projection, and of an embedding tied to it",
        choices=("4", "8", "float"),
    ),
    OptionSpec(name="embedding", summary="bits of the token embedding", choices=("8", "float")),
    OptionSpec(
        name="provider",
        summary="where 8-bit inputs are to be multiplied; CUDA cannot, and gets weights only",
        choices=("cpu", "cuda"),
    ),
    OptionSpec(
        name="sensitive",
        summary="layers whose inputs are not rounded: auto (measured), none, or down_proj+o_proj",
    ),
    OptionSpec(
        name="sensitive_above",
        summary="relative error of a layer's output above which auto leaves its input alone",
    ),
    OptionSpec(
        name="search",
        summary="how scales are found: of least error, or of the largest magnitude",
        choices=("search", "absmax"),
    ),
)


@hookimpl
def qconv_backends() -> Iterator[BackendSpec]:
    """Offer onnx."""
    yield BackendSpec(
        name="onnx",
        summary="ONNX graphs for onnxruntime, optimum and transformers.js",
        formats=tuple(
            FormatSpec(name=name, summary=summary, runtimes=("onnxruntime",))
            for name, summary in _FORMATS
        ),
        options=_OPTIONS,
        reads=("safetensors", "onnx"),
        recognizes=_recognizes,
        load=_load,
        api_version=1,
    )


def _recognizes(path: Path) -> bool:
    """A folder with a graph, or the graph in it."""
    return path.suffix == ".onnx" if path.is_file() else (path / "model.onnx").is_file()


def _load() -> Callable[[], Backend]:
    from ._backend import OnnxBackend

    return OnnxBackend
