"""The fate of every tensor: the linear weights of blocks are quantized, all others stay float."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.errors import Unsupported
from qconv.plugin import PlanRequest, TensorInfo, TensorPlan, TensorPlans

from ._parts import TYPES, Part, float_parts, quantized_parts

if TYPE_CHECKING:
    from collections.abc import Collection

    from qconv.grids import ActivationGrid, UniformGrid

    from ._export import Exported
    from ._options import Operator, Scheme

#: In a numbered block: ``model.layers.3.mlp.up_proj.weight``.
_IN_BLOCK = re.compile(r"(?:.+\.)?\d+\.(?P<module>.+)\.weight")

#: Modules that decide where tokens go: a wrong route costs more than all rounding.
_ROUTERS = frozenset({"gate", "router", "shared_expert_gate", "wg", "classifier"})

#: Source dtypes that a graph's floats are made from.
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor(TensorPlan):
    """A tensor of an ONNX artifact.

    operator: what computes with it; None: it stays float
    parts: the initializers it is stored as
    """

    operator: Operator | None = None
    parts: tuple[Part, ...]


def plan(
    request: PlanRequest, scheme: Scheme, graph: Exported, linears: Collection[str]
) -> TensorPlans:
    """Plan every tensor that the graph uses.

    linears: names of the weights that the graph multiplies by, and does nothing else with

    Raises:
        Unsupported: nothing is to be quantized, or a tensor is no float.
        UnsupportedGrid: the groups do not divide a weight's columns.
    """
    if request.held:
        raise Unsupported("onnx: transcoding to ONNX is not offered; convert the float checkpoint")
    operator = scheme.operator
    grid = None if operator is None else _grid(scheme)
    tensors = []
    for name in graph.weights:
        info = request.model.tensors[name]
        reason = _kept(name, linears)
        if grid is None or operator is None or reason:
            tensors.append(_float(scheme, info, reason or "plain floats"))
        else:
            tensors.append(_quantized(operator, info, grid))
    if grid is not None and all(each.grid is None for each in tensors):
        raise Unsupported(
            f"onnx:{scheme.format}: no linear weight of a block was found among {len(tensors)} "
            "tensors, so there is nothing to quantize (stacked experts and transposed weights "
            "are not); use onnx:fp32"
        )
    return TensorPlans(tensors=tuple(tensors), dropped=graph.dropped)


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


def _kept(name: str, linears: Collection[str]) -> str:
    """Why a tensor stays float; empty when it does not."""
    match = _IN_BLOCK.fullmatch(name)
    if match is None:
        return "not a linear weight of a block"
    if match["module"].rpartition(".")[2] in _ROUTERS:
        return "a router stays float"
    return "" if name in linears else "not the weight of a MatMul in the graph"


def _quantized(operator: Operator, info: TensorInfo, grid: UniformGrid) -> PlannedTensor:
    grid.check_shape((info.shape[0], info.shape[1]), info.name)
    return PlannedTensor(
        name=info.name,
        sources=(info.name,),
        shape=info.shape,
        action="quantize",
        storage=grid.name,
        grid=grid,
        reason="a linear of a block",
        activation=_activation() if operator == "integer" else None,
        operator=operator,
        parts=quantized_parts(operator, (info.shape[0], info.shape[1]), grid),
    )


def _activation() -> ActivationGrid:
    """8 bits by token, symmetric, found as it goes."""
    from qconv.grids import ActivationGrid

    return ActivationGrid()


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
