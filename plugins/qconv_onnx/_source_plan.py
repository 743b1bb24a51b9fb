"""The fate of every tensor of an ONNX source.

Whatever its graph multiplies by is quantized; all else stays as it is, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from qconv.errors import Unsupported, UsageError
from qconv.plugin import TensorPlans

from ._parts import TYPES, Part, quantized_parts, row_parts
from ._planner import HEAD, LEAST_TABLE, TABLE_BITS, PlannedTensor, activation_of, parts_of

if TYPE_CHECKING:
    from qconv.grids import UniformGrid
    from qconv.plugin import PlanRequest, TensorInfo

    from ._options import Operator, Scheme
    from ._source import SourceGraph

#: ONNX's name of a type, by that of the checkpoint's.
_TYPES = {
    "F64": "DOUBLE",
    "F32": "FLOAT",
    "F16": "FLOAT16",
    "BF16": "BFLOAT16",
    "F8_E4M3": "FLOAT8E4M3FN",
    "F8_E5M2": "FLOAT8E5M2",
    "I64": "INT64",
    "I32": "INT32",
    "I16": "INT16",
    "I8": "INT8",
    "U64": "UINT64",
    "U32": "UINT32",
    "U16": "UINT16",
    "U8": "UINT8",
    "BOOL": "BOOL",
}

#: Torch's name of the type of scales, by the checkpoint's of the weight's: the graph goes on in
#: the type that it is in.
_SCALES: Mapping[str, Literal["float16", "float32"]] = {"F32": "float32", "F16": "float16"}

#: Operators that multiply in float32, whatever the graph is in.
_IN_FLOAT = frozenset({"integer", "static"})

#: The opset from which on DequantizeLinear gives float16.
_HALF_SINCE = 19

#: The opset that an operator came with, or with what is asked of it.
_SINCE: dict[Operator, int] = {
    "blocked": 21,
    "channel": 13,
    "conv": 13,
    "integer": 10,
    "static": 13,
}

#: Operators that DequantizeLinear decodes weights for in the graph's type.
_DECODED = frozenset({"blocked", "channel", "conv"})

#: Bits that a head has at least.
_LEAST_OF_HEAD = 8

#: Columns per scale of tables where the format has none.
_BLOCK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Treatment:
    """What is done to a weight, and why.

    bits: of a code, where it is stored in blocks; else there are 8
    fell: from the operator that the format names
    """

    operator: Operator
    reason: str
    bits: int = 8
    fell: bool = False


def plan_source(request: PlanRequest, scheme: Scheme, graph: SourceGraph) -> TensorPlans:
    """Plan every tensor that the graph uses.

    Raises:
        UsageError: an option makes no sense for a graph that is kept.
        Unsupported: the graph's types or its opset do not do, or nothing is to be quantized.
    """
    _refuse_options(request, graph)
    _check_names(request, scheme, graph)
    tensors = []
    for name in graph.weights:
        info = request.model.tensors[name]
        chosen = _treatment(request, scheme, graph, info)
        if isinstance(chosen, str):
            tensors.append(_kept(info, chosen))
        else:
            tensors.append(_quantized(scheme, graph, info, chosen))
    if scheme.operator is not None:
        _refuse_nothing(request, tensors, graph)
        _check_opset(request, tensors, graph.opset)
    return TensorPlans(tensors=tuple(tensors), dropped=graph.dropped)


def _refuse_options(request: PlanRequest, graph: SourceGraph) -> None:
    name, options = request.model.name, request.options
    if "kv_cache" in options:
        raise UsageError(
            f"{name}: option 'kv_cache' means nothing for an .onnx source, whose "
            "inputs and outputs stay as they are; leave it out"
        )
    for option in ("sensitive", "sensitive_above"):
        if option in options and options.get("sensitive", "auto") == "auto":
            raise UsageError(
                f"{name}: {option}={options[option]}: of an .onnx source, what rounding inputs "
                "does is not measured; name the weights, as in sensitive=down_proj, or leave it out"
            )
    if "head" in options and not graph.heads:
        raise UsageError(
            f"{name}: head={options['head']}: no MatMul or Gemm of the graph gives an output, "
            "so it has no head; leave it out"
        )
    if request.format == "fp16":
        raise Unsupported(
            f"{request.model.name}: onnx:fp16 is not made from an .onnx source, whose graph "
            "computes in what it computes in; export it in float16, or use onnx:fp32"
        )


def _check_names(request: PlanRequest, scheme: Scheme, graph: SourceGraph) -> None:
    multiplied = {*graph.products, *graph.multiplied}
    known = {part for name in multiplied for part in _called(graph, name)}
    for name in sorted(scheme.sensitive - known):
        some = ", ".join(sorted(graph.products)[:8])
        raise UsageError(
            f"{request.model.name}: sensitive={name}: no weight of a product is called so, nor a "
            f"part of one; there are {len(graph.products)}, such as {some}"
        )


def _called(graph: SourceGraph, name: str) -> set[str]:
    """What ``sensitive`` may call a weight: its name, or a part of that as in a checkpoint."""
    return {name, *parts_of(name), *([HEAD] if name in graph.heads else [])}


def _treatment(
    request: PlanRequest, scheme: Scheme, graph: SourceGraph, info: TensorInfo
) -> _Treatment | str:
    """What is done to a tensor; or why it stays as it is."""
    name = info.name
    if scheme.operator is None:
        return "as it is in the source"
    if kept := _kept_for(graph, info):
        return kept
    if name in graph.lookups:
        return _table(scheme, graph, info)
    if name in graph.kernels:
        return _Treatment(operator="conv", reason="the weight of a Conv, 8 bits by output channel")
    if name in graph.products:
        asked = name in graph.heads and "head" in request.options
        return (_head if asked else _factor)(scheme, scheme.operator, graph, info)
    return "not the weight of a MatMul, Gemm or Conv"


def _kept_for(graph: SourceGraph, info: TensorInfo) -> str:
    """Why a tensor cannot be quantized, whatever uses it; empty where it can."""
    if info.name in graph.defaults:
        return "an input, too, which callers may give other values"
    return "" if info.dtype in _SCALES else f"{info.dtype}: only float32 and float16 are quantized"


def _factor(scheme: Scheme, operator: Operator, graph: SourceGraph, info: TensorInfo) -> _Treatment:
    """A weight that is multiplied by.

    operator: that of the format
    """
    columns = _shape(graph, info)[1]
    if scheme.bits < _LEAST_OF_HEAD and info.name in graph.heads:
        return _Treatment(operator="channel", reason="gives an output, so not below 8 bits")
    if scheme.sensitive & _called(graph, info.name):
        reason = "its input stays float as asked: 8 bits, weights only"
        return _Treatment(operator="channel" if columns % _BLOCK else "nbits", reason=reason)
    if scheme.group_size is not None and columns % scheme.group_size:
        return _by_channel(columns, scheme.group_size)
    return _Treatment(operator=operator, reason="the weight of a product", bits=scheme.bits)


def _head(
    scheme: Scheme, operator: Operator, graph: SourceGraph, info: TensorInfo
) -> _Treatment | str:
    """A weight whose product is an output, of which it was said what to do with it."""
    if scheme.head is None:
        return "gives an output: float as asked"
    if scheme.head >= _LEAST_OF_HEAD:
        return _factor(scheme, operator, graph, info)
    columns, block = _shape(graph, info)[1], scheme.group_size or _BLOCK
    if columns % block:
        return _by_channel(columns, block)
    reason = f"gives an output: {scheme.head} bits as asked"
    return _Treatment(operator="nbits", reason=reason, bits=scheme.head)


def _by_channel(columns: int, block: int) -> _Treatment:
    reason = f"{columns} columns are no multiple of {block}: 8 bits by channel"
    return _Treatment(operator="channel", reason=reason, fell=True)


def _table(scheme: Scheme, graph: SourceGraph, info: TensorInfo) -> _Treatment | str:
    """Rows are looked up at 8 bits: by row, or in the blocks that the format or a product has.

    A table that is the head, too, has the head's bits.
    """
    columns, block = info.shape[1], scheme.group_size or _BLOCK
    shared = info.name in graph.multiplied
    bits = scheme.head if info.name in graph.heads else scheme.embedding
    stays = _table_stays(graph, info)
    if stays or bits is None or scheme.embedding is None:
        return stays or "a table stays float here"
    if not shared and (scheme.group_size is None or columns % block):
        return _Treatment(operator="rows", reason="a table, 8 bits by row")
    named = scheme.sensitive & _called(graph, info.name)
    if scheme.operator == "integer" and bits == TABLE_BITS and not named:
        return _Treatment(operator="rows", reason="a table, 8 bits by row, input rounded, too")
    if columns % block:
        return f"a table of {columns} columns, no multiple of {block}, stays float"
    return _Treatment(operator="nbits", reason=f"a table, {bits} bits in blocks", bits=bits)


def _table_stays(graph: SourceGraph, info: TensorInfo) -> str:
    """Why a table stays float, whatever was asked; empty where it need not."""
    if info.numel < LEAST_TABLE:
        return "a small table stays float"
    if info.name not in graph.multiplied | graph.vocabularies | graph.added:
        return "a table by positions or by what the graph computes stays float"
    return ""


def _shape(graph: SourceGraph, info: TensorInfo) -> tuple[int, int]:
    """``(out, in)``."""
    if info.name in graph.kernels:
        return info.shape[0], prod(info.shape[1:])
    if graph.products.get(info.name) == "transposed":
        return info.shape[1], info.shape[0]
    return info.shape[0], info.shape[1]


def _quantized(
    scheme: Scheme, graph: SourceGraph, info: TensorInfo, chosen: _Treatment
) -> PlannedTensor:
    operator, shape = chosen.operator, _shape(graph, info)
    # With zero-points of 4 bits, lookups and products would want them packed otherwise.
    shared = info.name in graph.lookups and chosen.bits == 4
    # Of a table by rows, its product, if there is one, is an integer one.
    by = "integer" if operator == "rows" and info.name in graph.multiplied else operator
    grid = _grid(scheme, by, info, bits=chosen.bits, symmetric=shared)
    wanted = _grid(scheme, scheme.operator or operator, info, bits=scheme.bits)
    if operator == "conv":
        parts = row_parts(info.shape, TYPES[grid.scale_dtype])
    else:
        parts = quantized_parts(operator, shape, grid)
    arrangement = "flat" if operator == "conv" else graph.products.get(info.name, "rows")
    return PlannedTensor(
        name=info.name,
        sources=(info.name,),
        shape=shape,
        action="quantize",
        storage=grid.name,
        grid=grid,
        reason=chosen.reason,
        fallback_from=wanted.name if chosen.fell else None,
        activation=activation_of(by),
        arrangement=arrangement,
        operator=operator,
        parts=parts,
    )


def _grid(
    scheme: Scheme, operator: Operator, info: TensorInfo, *, bits: int, symmetric: bool = False
) -> UniformGrid:
    """The grid of an operator for a weight.

    symmetric: in blocks, too, whatever the scheme says of these
    """
    from qconv.grids import UniformGrid

    in_blocks = operator in {"nbits", "blocked"}
    return UniformGrid(
        bits=bits if in_blocks else 8,
        symmetric=symmetric
        or not in_blocks
        or (scheme.symmetric and scheme.group_size is not None),
        group_size=(scheme.group_size or _BLOCK) if in_blocks else "channel",
        scale_dtype="float32" if operator in _IN_FLOAT else _SCALES[info.dtype],
        search=scheme.search,
    )


def _kept(info: TensorInfo, reason: str) -> PlannedTensor:
    return PlannedTensor(
        name=info.name,
        sources=(info.name,),
        shape=info.shape,
        action="copy",
        storage=_TYPES[info.dtype],
        dtype="raw",
        reason=reason,
        parts=(Part(suffix="", type=_TYPES[info.dtype], shape=info.shape, by_rows=True),),
    )


def _refuse_nothing(request: PlanRequest, tensors: list[PlannedTensor], graph: SourceGraph) -> None:
    if any(each.operator is not None for each in tensors):
        return
    if graph.defaults:
        raise Unsupported(
            f"{request.model.name}: {len(graph.defaults)} initializers are inputs, too, which "
            "callers may give other values, so there is nothing to quantize; run python "
            "-m onnxruntime.tools.remove_initializer_from_input --input IN.onnx --output OUT.onnx"
        )
    raise Unsupported(
        f"{request.model.name}: no MatMul, Gemm or Conv of the graph multiplies by a float32 "
        f"or float16 initializer that nothing else uses, among {len(tensors)} of them, so there is "
        "nothing to quantize; export the model in one of them, with its weights as initializers"
    )


def _check_opset(request: PlanRequest, tensors: list[PlannedTensor], opset: int) -> None:
    """Refuse operators that are younger than the graph's opset.

    Raises:
        Unsupported: names the operator's opset and the graph's.
    """
    for each in tensors:
        since = _SINCE.get(each.operator or "nbits", 1)
        if each.activation is not None:
            since = max(since, _SINCE["integer"])
        if request.model.tensors[each.name].dtype == "F16" and each.operator in _DECODED:
            since = max(since, _HALF_SINCE)
        if opset < since:
            raise Unsupported(
                f"{request.model.name}: the graph is of opset {opset}, but what computes with "
                f"{each.name!r} needs opset {since}; convert it with "
                f"onnx.version_converter.convert_version(model, {since}), or export it anew"
            )
