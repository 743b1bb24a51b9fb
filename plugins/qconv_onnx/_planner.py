"""The fate of every tensor: linear weights of blocks, embedding and head are quantized.

Where products are of integers, so are other embeddings and linears beside the blocks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qconv.errors import Unsupported, UnsupportedGrid, UsageError
from qconv.plugin import PlanRequest, TensorInfo, TensorPlan, TensorPlans

from ._parts import TYPES, Part, float_parts, quantized_parts

if TYPE_CHECKING:
    from qconv.grids import ActivationGrid, UniformGrid
    from qconv.plugin import Arrangement

    from ._export import Exported
    from ._options import Operator, Scheme

#: In a numbered block: ``model.layers.3.mlp.up_proj.weight``.
_IN_BLOCK = re.compile(r"(?:.+\.)?\d+\.(?P<module>.+)\.weight")

#: Anything in a numbered block.
_NUMBERED = re.compile(r"(?:^|\.)\d+\.")

#: Modules that decide where tokens go: a wrong route costs more than all rounding.
_ROUTERS = frozenset({"gate", "router", "shared_expert_gate", "wg", "classifier"})

#: Source dtypes that a graph's floats are made from.
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

#: Bits of a table that has a scale for each row.
TABLE_BITS = 8

#: Tables of fewer values than this stay float, such as types of segments.
LEAST_TABLE = 1 << 14

#: What ``sensitive`` calls the output projection.
HEAD = "head"

#: Columns per scale of what is in blocks where the format itself has none.
_BLOCK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor(TensorPlan):
    """A tensor of an ONNX artifact.

    operator: what computes with it; None: it stays float
    parts: the initializers it is stored as
    """

    operator: Operator | None = None
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Treatment:
    """What is done to a weight, and why. operator: None: it stays float."""

    reason: str
    operator: Operator | None = None
    grid: UniformGrid | None = None
    arrangement: Arrangement = "rows"
    activation: ActivationGrid | None = None
    may_stay: bool = False


def plan(request: PlanRequest, scheme: Scheme, graph: Exported) -> TensorPlans:
    """Plan every tensor that the graph uses.

    Raises:
        Unsupported: nothing is to be quantized, or a tensor is no float.
        UsageError: a module named as sensitive is none of the model's.
        UnsupportedGrid: the groups do not divide a weight's columns.
    """
    if request.held:
        raise Unsupported("onnx: transcoding to ONNX is not offered; convert the float checkpoint")
    _check_names(request, scheme, graph)
    tensors = [
        _planned(scheme, request.model.tensors[name], _treatment(request, scheme, graph, name))
        for name in graph.weights
    ]
    if scheme.operator and not any(_in_block(each.name) for each in tensors if each.grid):
        raise Unsupported(
            f"onnx:{scheme.format}: no linear weight of a block was found among {len(tensors)} "
            "tensors, so there is nothing to quantize (stacked experts are not); use onnx:fp32"
        )
    return TensorPlans(
        tensors=tuple(tensors),
        dropped=graph.dropped,
        asks_input_errors=scheme.sensitive_above is not None and request.input_errors is None,
    )


def _treatment(request: PlanRequest, scheme: Scheme, graph: Exported, name: str) -> _Treatment:
    if scheme.operator is None:
        return _Treatment(reason="plain floats")
    if name in {graph.embedding, graph.head}:
        return _table(request, scheme, graph, name)
    if name in graph.added and scheme.operator == "integer":
        return _other_table(request, scheme, name)
    if kept := _kept(request, scheme, graph, name):
        return _Treatment(reason=kept)
    if sensitive := _sensitive(request, scheme, name):
        return _Treatment(
            reason=f"{sensitive}: 8 bits, weights only",
            operator="nbits",
            grid=_blocks(scheme, bits=8, symmetric=False),
            arrangement=graph.products[name],
            may_stay=True,
        )
    notes = [note for note in (scheme.why, _unmeasured(request, scheme, name)) if note]
    return _Treatment(
        reason="; ".join(
            [f"a linear {'of a block' if _in_block(name) else 'beside the blocks'}", *notes]
        ),
        operator=scheme.operator,
        grid=_grid(scheme),
        arrangement=graph.products[name],
        activation=activation_of(scheme.operator),
    )


def _kept(request: PlanRequest, scheme: Scheme, graph: Exported, name: str) -> str:
    """Why a tensor stays float; empty when it does not."""
    module = _in_block(name)
    if module.rpartition(".")[2] in _ROUTERS:
        return "a router stays float"
    if not module and not _is_beside(request, scheme, graph, name):
        return "not a linear weight of a block"
    return "" if name in graph.products else "not the weight of a MatMul in the graph"


def _is_beside(request: PlanRequest, scheme: Scheme, graph: Exported, name: str) -> bool:
    """Whether it is a linear in no block that is quantized, too, such as a pooler; not a head."""
    large = request.model.tensors[name].numel >= LEAST_TABLE
    inner = not _NUMBERED.search(name) and name not in graph.heads
    return scheme.operator == "integer" and large and inner


def _in_block(name: str) -> str:
    """The module within its block; empty when it is in none."""
    match = _IN_BLOCK.fullmatch(name)
    return match["module"] if match else ""


def _table(request: PlanRequest, scheme: Scheme, graph: Exported, name: str) -> _Treatment:
    """Embedding and head, stored once where they are tied.

    Where products are of integers, the head's is, too; its rows have one scale each, as others'
    have. Elsewhere they are in blocks, which lose little.
    """
    tied = graph.embedding == graph.head
    what = "embedding and head, tied" if tied else "head" if name == graph.head else "embedding"
    bits = scheme.head if name == graph.head else scheme.embedding
    if tied and scheme.embedding is None:
        bits = None
    if bits is None:
        return _Treatment(reason=f"{what}: float")
    multiplied = name == graph.head
    sensitive = _sensitive(request, scheme, name, called=HEAD) if multiplied else ""
    if scheme.operator == "integer" and bits == TABLE_BITS and not sensitive:
        by_row = _Treatment(
            reason=f"{what}: {bits} bits by row", operator="rows", grid=_grid(scheme)
        )
        if not multiplied:
            return by_row
        notes = [by_row.reason, "input rounded, too", _unmeasured(request, scheme, name, name)]
        reason = "; ".join(note for note in notes if note)
        return replace(by_row, reason=reason, activation=activation_of("integer"))
    # With zero-points of 4 bits, the two operators would want them packed otherwise.
    shared = tied and bits == 4
    symmetric = shared or (scheme.symmetric and scheme.group_size is not None)
    grid = _blocks(scheme, bits=bits, symmetric=symmetric)
    reason = "; ".join(each for each in (f"{what}: {bits} bits, weights only", sensitive) if each)
    return _Treatment(reason=reason, operator="nbits", grid=grid, may_stay=True)


def _other_table(request: PlanRequest, scheme: Scheme, name: str) -> _Treatment:
    """A table whose rows are added to the token embedding's, as those of positions are."""
    info = request.model.tensors[name]
    if scheme.embedding is None:
        return _Treatment(reason="a table: float as asked")
    if info.numel < LEAST_TABLE:
        return _Treatment(reason="a small table stays float")
    return _Treatment(reason="a table: 8 bits by row", operator="rows", grid=_grid(scheme))


def _grid(scheme: Scheme) -> UniformGrid:
    """Scales are float32: MatMulNBits has them in the type it multiplies in."""
    from qconv.grids import UniformGrid

    return UniformGrid(
        bits=scheme.bits,
        symmetric=scheme.symmetric,
        group_size="channel" if scheme.group_size is None else scheme.group_size,
        scale_dtype="float32",
        search=scheme.search,
    )


def _blocks(scheme: Scheme, *, bits: int, symmetric: bool) -> UniformGrid:
    """The grid of what is in blocks, whatever the format's linear weights are in."""
    size = scheme.group_size or _BLOCK
    return replace(_grid(scheme), bits=bits, symmetric=symmetric, group_size=size)


def _check_names(request: PlanRequest, scheme: Scheme, graph: Exported) -> None:
    """Refuse names of layers that there are not, or that are not quantized."""
    weights = [n for n in graph.products if _in_block(n) or _is_beside(request, scheme, graph, n)]
    known = {part for name in weights for part in parts_of(name)}
    known |= {HEAD} if graph.head is not None else set()
    for name in sorted(scheme.sensitive - known):
        modules = {_module(each).rpartition(".")[2] for each in weights}
        raise UsageError(
            f"onnx:{scheme.format}: sensitive={name}: no linear layer is called so; "
            f"this model has {', '.join(sorted(modules | (known & {HEAD})))}"
        )


def parts_of(name: str) -> set[str]:
    """What a weight's module may be called: ``mlp.down_proj``, or a part of that.

    One that is in no block goes by its last two parts, too, but not by what all modules begin with.
    """
    module = _module(name)
    last = module.split(".")[-2:]
    return {module, *(module.split(".") if _in_block(name) else (".".join(last), *last))} - {""}


def _module(name: str) -> str:
    """The module of a weight: within its block, if it is in one."""
    return _in_block(name) or name.removesuffix(".weight")


def _sensitive(request: PlanRequest, scheme: Scheme, name: str, called: str = "") -> str:
    """Why the input of a linear weight is not rounded; empty when it is.

    called: what the weight may be called, too
    """
    if scheme.sensitive & {*parts_of(name), called}:
        return "its input stays float as asked"
    error = (request.input_errors or {}).get(name, 0.0)
    if scheme.sensitive_above is None or error <= scheme.sensitive_above:
        return ""
    return (
        f"rounding its input would change its output by {error:.1%}, more than "
        f"{scheme.sensitive_above:.1%}"
    )


def _unmeasured(request: PlanRequest, scheme: Scheme, name: str, head: str | None = None) -> str:
    """That a layer is not among those measured, so that its input is rounded; or empty."""
    errors = request.input_errors
    if scheme.sensitive_above is None or errors is None or name in errors:
        return ""
    measured = _in_block(name) or name == head
    why = "as no token came through" if measured else "as it is beside the blocks"
    return f"what rounding its input does was not measured, {why}"


def _planned(scheme: Scheme, info: TensorInfo, chosen: _Treatment) -> PlannedTensor:
    operator, grid = chosen.operator, chosen.grid
    if operator is None or grid is None:
        return _float(scheme, info, chosen.reason)
    flipped = chosen.arrangement == "transposed"
    shape = (info.shape[1], info.shape[0]) if flipped else (info.shape[0], info.shape[1])
    try:
        grid.check_shape(shape, info.name)
    except UnsupportedGrid:
        if not chosen.may_stay:
            raise
        reason = f"{shape[1]} columns are not a multiple of {grid.group_size}"
        return replace(_float(scheme, info, reason), fallback_from=grid.name)
    return PlannedTensor(
        name=info.name,
        sources=(info.name,),
        shape=shape,
        action="quantize",
        storage=grid.name,
        grid=grid,
        reason=chosen.reason,
        activation=chosen.activation,
        arrangement=chosen.arrangement,
        operator=operator,
        parts=quantized_parts(operator, shape, grid),
    )


def activation_of(operator: Operator) -> ActivationGrid | None:
    """8 bits: by token as it goes, symmetric; or by tensor, stated beforehand, with a zero-point.

    Inputs after a GELU or a ReLU have nearly one sign, which wastes a bit of a symmetric grid.
    """
    from qconv.grids import ActivationGrid

    if operator == "integer":
        return ActivationGrid()
    if operator != "static":
        return None
    return ActivationGrid(symmetric=False, scope="tensor", dynamic=False)


def _float(scheme: Scheme, info: TensorInfo, reason: str) -> PlannedTensor:
    if info.dtype not in _FLOATS:
        raise Unsupported(
            f"onnx:{scheme.format}: tensor {info.name!r} is {info.dtype}, but the graph takes "
            f"{scheme.dtype} from {', '.join(sorted(_FLOATS))}; convert a float checkpoint"
        )
    return PlannedTensor(
        name=info.name,
        sources=(info.name,),
        shape=info.shape,
        action="cast",
        storage=TYPES[scheme.dtype],
        dtype=scheme.dtype,
        reason=reason,
        parts=float_parts(info.shape, scheme.dtype),
    )
