"""What a target asks for: its format's defaults and the options given, checked before anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qconv.errors import UsageError

if TYPE_CHECKING:
    from qconv.plugin import PlanRequest

#: How a quantized weight is computed with: see ``_operators``.
Operator = Literal["nbits", "blocked", "integer"]

#: Operator, bits, columns per scale, symmetric.
_QUANTIZED: Mapping[str, tuple[Operator, int, int | None, bool]] = {
    "w8": ("nbits", 8, 32, False),
    "int4": ("nbits", 4, 32, False),
    "int4_qdq": ("blocked", 4, 32, False),
    "int8": ("integer", 8, None, True),
}

_GRAPH = ("kv_cache",)
_BLOCKS = ("group_size", "search", "symmetric", *_GRAPH)
_KNOWN: Mapping[str, tuple[str, ...]] = {
    "fp32": _GRAPH,
    "fp16": _GRAPH,
    "w8": ("accuracy_level", *_BLOCKS),
    "int4": ("accuracy_level", *_BLOCKS),
    "int4_qdq": _BLOCKS,
    "int8": ("search", *_GRAPH),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A target's format with everything its options decide.

    operator: of the linear weights of blocks; None: nothing is quantized
    group_size: columns per scale; None: a whole row
    accuracy_level: of MatMulNBits: 1 multiplies in float32, 4 with inputs rounded to 8 bits
    kv_cache: of a decoder: whether the graph takes and gives keys and values of earlier tokens
    dtype: torch dtype name that the graph computes in
    """

    format: str
    operator: Operator | None = None
    bits: int = 8
    group_size: int | None = None
    symmetric: bool = True
    accuracy_level: int = 4
    kv_cache: bool = True
    search: Literal["search", "absmax"] = "search"

    @property
    def dtype(self) -> Literal["float16", "float32"]:
        """What the graph computes in, and scales are stored in."""
        return "float16" if self.format == "fp16" else "float32"


def read_scheme(request: PlanRequest) -> Scheme:
    """The scheme that a request asks for.

    Raises:
        UsageError: an option is unknown to the format.
    """
    name, options = request.format, request.options
    for option in options:
        if option not in _KNOWN[name]:
            raise UsageError(
                f"onnx:{name}: option {option!r} means nothing here; this format takes "
                f"{', '.join(sorted(_KNOWN[name]))}"
            )
    kv_cache = options.get("kv_cache", "true") == "true"
    if name not in _QUANTIZED:
        return Scheme(format=name, kv_cache=kv_cache)
    operator, bits, group_size, symmetric = _QUANTIZED[name]
    if group_size is not None:
        group_size = int(options.get("group_size", group_size))  # the host allows the choices only
    if "symmetric" in options:
        symmetric = options["symmetric"] == "true"
    return Scheme(
        format=name,
        operator=operator,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        accuracy_level=int(options.get("accuracy_level", "4")),
        kv_cache=kv_cache,
        search="absmax" if options.get("search") == "absmax" else "search",
    )
