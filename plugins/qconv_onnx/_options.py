"""What a target asks for: its format's defaults and the options given, checked before anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qconv.errors import UsageError

if TYPE_CHECKING:
    from qconv.plugin import PlanRequest

#: How a quantized weight is computed with: see ``_operators``.
Operator = Literal["nbits", "blocked", "integer", "static", "channel", "conv", "rows"]

#: Operator, bits, columns per scale, symmetric.
_QUANTIZED: Mapping[str, tuple[Operator, int, int | None, bool]] = {
    "w8": ("nbits", 8, 32, False),
    "int4": ("nbits", 4, 32, False),
    "int4_qdq": ("blocked", 4, 32, False),
    "w8a8": ("integer", 8, None, True),
    "int8_static": ("static", 8, None, True),
}

_GRAPH = ("kv_cache",)
_TABLES = ("embedding", "head")
_INTEGERS = (
    "accuracy_level",
    "provider",
    "search",
    "sensitive",
    "sensitive_above",
    *_TABLES,
    *_GRAPH,
)
_BLOCKS = ("group_size", "search", "symmetric", *_GRAPH)
_KNOWN: Mapping[str, tuple[str, ...]] = {
    "fp32": _GRAPH,
    "fp16": _GRAPH,
    "w8": ("accuracy_level", *_TABLES, *_BLOCKS),
    "int4": ("accuracy_level", *_TABLES, *_BLOCKS),
    "int4_qdq": _BLOCKS,
    "w8a8": _INTEGERS,
    "int8_static": _INTEGERS,
}

#: Relative error of a layer's output, from rounding its input, that is left to be.
_SENSITIVE_ABOVE = 0.1

#: What ``int8`` means, and why.
_INT8_OF_DECODER = (
    "int8 of a decoder is w8: it generates one token at a time, and then reading weights, not "
    "multiplying, takes the time (w8a8 multiplies in 8 bits, for long prompts)"
)
_INT8_OF_ENCODER = (
    "int8 of an encoder is w8a8: it takes many tokens at once, which integers multiply faster"
)

#: The operators that onnxruntime-gpu 1.31's CUDA provider lists.
_NO_INTEGERS_ON_CUDA = (
    "onnxruntime has no kernel on CUDA that takes inputs of 8 bits: the same codes, weights only"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A target's format with everything its options decide.

    format: as asked for
    operator: of the linear weights of blocks; None: nothing is quantized
    group_size: columns per scale; None: a whole row
    accuracy_level: of MatMulNBits: 1 multiplies in float32, 4 with inputs rounded to 8 bits
    kv_cache: of a decoder: whether the graph takes and gives keys and values of earlier tokens
    sensitive: names of modules whose inputs stay float, whatever was measured
    sensitive_above: the relative error of a layer's output from rounding its input, above which the
        input stays float; None: none does
    head, embedding: bits of the output projection and of the token embedding; None: float
    why: what was chosen for this model, for people; empty where nothing was
    """

    format: str
    operator: Operator | None = None
    bits: int = 8
    group_size: int | None = None
    symmetric: bool = True
    accuracy_level: int = 4
    kv_cache: bool = True
    search: Literal["search", "absmax"] = "search"
    sensitive: frozenset[str] = frozenset()
    sensitive_above: float | None = None
    head: int | None = None
    embedding: int | None = None
    why: str = ""

    @property
    def dtype(self) -> Literal["float16", "float32"]:
        """What the graph computes in, and scales are stored in."""
        return "float16" if self.format == "fp16" else "float32"


def read_scheme(request: PlanRequest, *, is_decoder: bool) -> Scheme:
    """The scheme that a request asks for.

    is_decoder: the model predicts the next token: that decides what ``int8`` is

    Raises:
        UsageError: an option is unknown to the format.
    """
    name, options, why = request.format, request.options, ""
    if name == "int8":
        name = "w8" if is_decoder else "w8a8"
        why = _INT8_OF_DECODER if is_decoder else _INT8_OF_ENCODER
    _check_known(request.format, name, options)
    kv_cache = options.get("kv_cache", "true") == "true"
    if name not in _QUANTIZED:
        return Scheme(format=name, kv_cache=kv_cache)
    operator, bits, group_size, symmetric = _QUANTIZED[name]
    if options.get("provider") == "cuda":
        operator, why = "channel", _NO_INTEGERS_ON_CUDA
    if group_size is not None:
        group_size = int(options.get("group_size", group_size))  # the host allows the choices only
    if "symmetric" in options:
        symmetric = options["symmetric"] == "true"
    tables = "float" if operator == "blocked" else "8"
    return Scheme(
        format=request.format,
        operator=operator,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        accuracy_level=int(options.get("accuracy_level", "4")),
        kv_cache=kv_cache,
        search="absmax" if options.get("search") == "absmax" else "search",
        **_sensitive(operator, options),
        head=_bits(options.get("head", tables)),
        embedding=_bits(options.get("embedding", tables)),
        why=why,
    )


def _check_known(asked: str, name: str, options: Mapping[str, str]) -> None:
    for option in options:
        if option not in _KNOWN[name]:
            meant = "" if asked == name else f" ({name} for this model)"
            raise UsageError(
                f"onnx:{asked}{meant}: option {option!r} means nothing here; this format takes "
                f"{', '.join(sorted(_KNOWN[name]))}"
            )


def _sensitive(operator: Operator, options: Mapping[str, str]) -> dict[str, Any]:
    """Which inputs stay float where inputs are rounded.

    Raises:
        UsageError: the limit is no positive number.
    """
    if operator not in {"integer", "static"}:
        return {}
    chosen, limit = options.get("sensitive", "auto"), options.get("sensitive_above")
    if chosen != "auto":
        if limit is not None:
            raise UsageError(
                f"onnx: sensitive_above={limit} goes with sensitive=auto, not sensitive={chosen}; "
                "leave one of them out"
            )
        return {"sensitive": frozenset(chosen.split("+") if chosen != "none" else ())}
    try:
        above = _SENSITIVE_ABOVE if limit is None else float(limit)
    except ValueError:
        above = 0.0
    if not 0 < above < 1:
        raise UsageError(
            f"onnx: sensitive_above is {limit!r}; choose a relative error between 0 and 1, such as "
            f"{_SENSITIVE_ABOVE}"
        )
    return {"sensitive_above": above}


def _bits(text: str) -> int | None:
    return None if text == "float" else int(text)
