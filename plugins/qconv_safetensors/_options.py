"""What a target asks for: its format's defaults and the options given, checked before anything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qconv.errors import UsageError

if TYPE_CHECKING:
    from qconv.plugin import PlanRequest

#: Group sizes that vLLM's Marlin kernels compute (``marlin_utils.MARLIN_SUPPORTED_GROUP_SIZES``).
_GROUP_SIZES: Mapping[str, Any] = {"32": 32, "64": 64, "128": 128, "channel": "channel"}

#: Bits that a layout packs: GPTQ's kernels unpack 2, 3, 4 and 8, AWQ's 4 only.
BITS: Mapping[str, tuple[int, ...]] = {
    "int4": (2, 3, 4, 5, 6, 7, 8),
    "int8": (8,),
    "gptq": (2, 3, 4, 8),
    "gptq_v2": (2, 3, 4, 8),
    "awq": (4,),
}

#: bits, group_size, symmetric of the integer formats.
_INTEGER_DEFAULTS: Mapping[str, tuple[int, Any, bool]] = {
    "int4": (4, 128, False),
    "int8": (8, "channel", True),
    "gptq": (4, 128, True),
    "gptq_v2": (4, 128, True),
    "awq": (4, 128, False),
}

_EVERYWHERE = ("shard_size", "serve")
_QUANTIZED = ("indivisible", *_EVERYWHERE)
_INTEGER = ("bits", "group_size", "symmetric", "search", *_QUANTIZED)
_KNOWN: Mapping[str, tuple[str, ...]] = {
    "int4": _INTEGER,
    "int8": ("activations", *_INTEGER),
    "fp8": ("scope", "activations", "search", *_QUANTIZED),
    "gptq": _INTEGER,
    "gptq_v2": _INTEGER,
    "awq": _INTEGER,
    "nf4": ("double_quant", *_QUANTIZED),
    "fp4": ("double_quant", *_QUANTIZED),
    "bf16": _EVERYWHERE,
    "fp16": _EVERYWHERE,
    "fp32": _EVERYWHERE,
}

#: All formats.
FORMATS = tuple(_KNOWN)

#: Torch dtype of the plain formats.
FLOATS: Mapping[str, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A target's format with everything its options decide.

    bits, group_size, symmetric: of the integer formats
    scope: what shares an FP8 scale
    activations: the runtime quantizes the inputs of linears, by token, as they come
    double_quant: bitsandbytes' scales are quantized themselves
    keep_indivisible: rows that groups do not divide stay in float; otherwise they are refused
    shard_nbytes: the most a weights file may hold, headers apart
    tensor_parallel: over how many devices vLLM must be able to split; None: not checked
    """

    format: str
    bits: int = 4
    group_size: int | Literal["channel"] = 128
    symmetric: bool = True
    scope: Literal["channel", "tensor", "block"] = "channel"
    activations: bool = False
    double_quant: bool = False
    keep_indivisible: bool = False
    shard_nbytes: int = 5 * 10**9
    tensor_parallel: int | None = None
    search: Literal["search", "absmax"] = "search"


def read_scheme(request: PlanRequest) -> Scheme:
    """The scheme that a request asks for.

    Raises:
        UsageError: an option is unknown to the format, or no runtime computes what it asks for.
    """
    name, options = request.format, request.options
    _refuse_foreign(name, options)
    if request.held:
        _refuse_decided(name, options)
    scheme = Scheme(
        format=name,
        scope=_scope(options),
        activations=_activations(request),
        double_quant=options.get("double_quant", "false") == "true",
        keep_indivisible=options.get("indivisible", "refuse") == "float",
        shard_nbytes=_shard_nbytes(name, options.get("shard_size", "5GB")),
        tensor_parallel=_tensor_parallel(name, options.get("serve")),
        search="absmax" if options.get("search") == "absmax" else "search",
        **_integer(name, options),
    )
    _refuse_uncomputed(scheme, transcoding=bool(request.held))
    return scheme


def _integer(name: str, options: Mapping[str, str]) -> dict[str, Any]:
    if name not in _INTEGER_DEFAULTS:
        return {}
    bits, group_size, symmetric = _INTEGER_DEFAULTS[name]
    if "bits" in options:
        bits = _bits(name, options["bits"])
    if "group_size" in options:
        group_size = _group_size(name, options["group_size"])
    if "symmetric" in options:
        symmetric = options["symmetric"] == "true"
    return {"bits": bits, "group_size": group_size, "symmetric": symmetric}


def _bits(name: str, text: str) -> int:
    allowed = BITS[name]
    if text not in {str(bits) for bits in allowed}:
        choices = ", ".join(str(bits) for bits in allowed)
        more = "" if name == "int4" else "; safetensors:int4 takes bits from 2 to 8"
        raise UsageError(
            f"safetensors:{name}: bits is {text!r}, but this layout holds {choices}{more}"
        )
    return int(text)


def _group_size(name: str, text: str) -> int | Literal["channel"]:
    if text not in _GROUP_SIZES:
        raise UsageError(
            f"safetensors:{name}: group_size is {text!r}, but runtimes have kernels for "
            f"{', '.join(_GROUP_SIZES)}; choose one of them"
        )
    size: int | Literal["channel"] = _GROUP_SIZES[text]
    return size


def _scope(options: Mapping[str, str]) -> Literal["channel", "tensor", "block"]:
    scope: Any = options.get("scope", "channel")  # the host allows the choices only
    return scope  # type: ignore[no-any-return]


def _activations(request: PlanRequest) -> bool:
    """FP8 quantizes inputs unless told not to; INT8 after SmoothQuant, or when told to."""
    given = request.options.get("activations")
    if given is not None:
        return given == "dynamic"
    if request.format == "fp8":
        return True
    return request.format == "int8" and "smoothquant" in request.method


def _shard_nbytes(name: str, text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", text.upper())
    nbytes = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if nbytes < 1:
        raise UsageError(
            f"safetensors:{name}: shard_size is {text!r}; write a size with its unit, "
            "such as 5GB, 500MB or 2GiB"
        )
    return nbytes


def _tensor_parallel(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"vllm(?::tp=([1-9]\d{0,3}))?", text.lower())
    if not match:
        raise UsageError(
            f"safetensors:{name}: serve is {text!r}; the runtime whose kernels are checked is "
            "vllm, over so many devices: serve=vllm:tp=4"
        )
    if name in {"nf4", "fp4"}:
        raise UsageError(
            f"safetensors:{name}: serve is {text!r}, but vLLM does not load {name}; "
            "serve int4, int8, fp8, gptq or awq"
        )
    return int(match[1] or 1)


def _refuse_foreign(name: str, options: Mapping[str, str]) -> None:
    for option in options:
        if option not in _KNOWN[name]:
            raise UsageError(
                f"safetensors:{name}: option {option!r} means nothing here, {_why(name, option)}; "
                f"this format takes {', '.join(sorted(_KNOWN[name]))}"
            )


def _why(name: str, option: str) -> str:
    if name in FLOATS:
        return "as nothing is quantized"
    if option == "activations":
        return "as no runtime quantizes inputs for it (safetensors:int8 and fp8 do)"
    if option == "scope":
        return "as only FP8 scales have a scope"
    if option == "double_quant":
        return "as only bitsandbytes quantizes scales (nf4 and fp4)"
    return "as the format decides it"


def _refuse_decided(name: str, options: Mapping[str, str]) -> None:
    """In a transcoding the values decide what the grid is."""
    decided = {"bits", "group_size", "symmetric", "scope", "double_quant", "search"}
    for option in options:
        if option in decided:
            raise UsageError(
                f"safetensors:{name}: option {option!r} cannot be chosen in a transcoding, which "
                "keeps the values as they are; leave it out, or convert the float checkpoint"
            )


def _refuse_uncomputed(scheme: Scheme, *, transcoding: bool) -> None:
    name = scheme.format
    if name == "awq" and scheme.symmetric and not transcoding:
        raise UsageError(
            "safetensors:awq: symmetric is 'true', but AWQ kernels always read zero-points; "
            "leave it out, or use safetensors:int4,symmetric=true or safetensors:gptq"
        )
    if name == "gptq" and not scheme.symmetric and not transcoding:
        raise UsageError(
            "safetensors:gptq: symmetric is 'false', but GPTQ v1 stores each zero-point less one "
            "and so has no way to say 0; use safetensors:gptq_v2,symmetric=false, or "
            "safetensors:int4, which vLLM reads too"
        )
    if name == "int8" and scheme.activations:
        _refuse_int8_inputs(scheme)


def _refuse_int8_inputs(scheme: Scheme) -> None:
    if scheme.group_size != "channel":
        raise UsageError(
            f"safetensors:int8: group_size is {scheme.group_size}, but kernels that compute on "
            "8-bit inputs take one scale per channel; use group_size=channel or activations=none"
        )
    if not scheme.symmetric:
        raise UsageError(
            "safetensors:int8: symmetric is 'false', but kernels that compute on 8-bit inputs "
            "take weights without zero-points; leave it out, or use activations=none"
        )
