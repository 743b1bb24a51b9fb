"""The files: a graph with the weights' places in it, the weights, and the source's companions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from qconv.plugin import FilePlan, Layout, Place

from ._export import DATA_FILE
from ._joined import join_products
from ._multihead import fuse_heads
from ._names import Names
from ._norms import keep_norms_apart
from ._operators import Rewriter, Stored
from ._places import find_places
from ._rotary import fuse_rotary
from ._source import SourceGraph

if TYPE_CHECKING:
    import onnx_ir

    from ._export import Exported
    from ._options import Scheme
    from ._parts import Part
    from ._planner import PlannedTensor

GRAPH_FILE = "model.onnx"

#: onnxruntime maps parts of this size and more into memory, if they begin on a page.
_LARGE, _PAGE, _SMALL_ALIGNMENT = 1 << 20, 4096, 64

#: What a graph computes with that has operators of the ONNX standard only.
_STANDARD = frozenset({None, "blocked"})

#: What has kernels on the CPU only.
_ON_CPU = frozenset({"integer", "static"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """A part of a tensor and where it goes."""

    name: str
    part: Part
    offset: int


def lay_out(
    folder: str,
    scheme: Scheme,
    exported: Exported,
    tensors: Sequence[PlannedTensor],
    companions: Sequence[tuple[str, bytes]],
) -> Layout:
    """All files of an artifact, and every place.

    folder: the artifact's
    companions: other files, by name
    """
    placed, end = _place(tensors)
    graph = _graph(scheme, exported, placed)
    files = [
        FilePlan(path=f"{folder}/{GRAPH_FILE}", header=graph, nbytes=len(graph)),
        FilePlan(path=f"{folder}/{DATA_FILE}", header=b"", nbytes=end),
        *(
            FilePlan(path=f"{folder}/{name}", header=data, nbytes=len(data))
            for name, data in companions
        ),
    ]
    places = {
        tensor.name: tuple(
            Place(
                file=f"{folder}/{DATA_FILE}",
                offset=each.offset,
                nbytes=each.part.nbytes,
                row_nbytes=_row_nbytes(tensor, each.part),
            )
            for each in parts
        )
        for tensor, parts in placed
    }
    return Layout(files=tuple(files), places=places)


def _place(
    tensors: Sequence[PlannedTensor],
) -> tuple[list[tuple[PlannedTensor, list[_Placed]]], int]:
    """Every part's offset, and where the last one ends."""
    end = 0
    placed = []
    for tensor in tensors:
        parts = []
        for part in tensor.parts:
            alignment = _PAGE if part.nbytes >= _LARGE else _SMALL_ALIGNMENT
            start = -(-end // alignment) * alignment
            parts.append(_Placed(name=tensor.name + part.suffix, part=part, offset=start))
            end = start + part.nbytes
        placed.append((tensor, parts))
    return placed, end


def _row_nbytes(tensor: PlannedTensor, part: Part) -> int | None:
    return part.nbytes // prod(tensor.shape[:-1]) if part.by_rows else None


def _graph(
    scheme: Scheme,
    exported: Exported,
    placed: Sequence[tuple[PlannedTensor, Sequence[_Placed]]],
) -> bytes:
    """The bytes of the graph that computes with the tensors as they are stored."""
    import onnx
    import onnx_ir as ir

    model = ir.from_proto(onnx.load_model_from_string(exported.graph))
    ours = not isinstance(exported, SourceGraph)  # what a stranger's says of shapes is not trusted
    if scheme.operator not in _STANDARD and ours:
        fuse_rotary(model)
        fuse_heads(model)
    if scheme.operator in _ON_CPU:
        keep_norms_apart(model)
    known, names = model.graph.initializers, Names(model)
    parts: dict[str, list[onnx_ir.Value]] = {}
    for tensor, stored in placed:
        if tensor.operator is None:
            known[tensor.name].const_value = _external(stored[0], tensor.name)
            continue
        parts[tensor.name] = [_value(each, names.fresh(each.name)) for each in stored]
        for value in parts[tensor.name]:
            known.add(value)
    rewriter = Rewriter(model, names, trusted=ours)
    places = find_places(model)
    for tensor, _ in placed:
        if tensor.name in parts:
            half = known[tensor.name].dtype == ir.DataType.FLOAT16
            quantized = _stored(scheme, tensor, parts[tensor.name], half=half)
            rewriter.replace(quantized, places[tensor.name])
    if ours:
        join_products(model, names)
    graph: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return graph


def _stored(
    scheme: Scheme, tensor: PlannedTensor, parts: Sequence[onnx_ir.Value], *, half: bool
) -> Stored:
    if tensor.operator is None or tensor.grid is None:
        raise ValueError(f"{tensor.name!r} is not quantized")
    rows, columns = tensor.shape
    return Stored(
        name=tensor.name,
        operator=tensor.operator,
        shape=(rows, columns),
        bits=int(tensor.grid.spec()["bits"]),
        block=tensor.grid.columns(columns),
        accuracy_level=scheme.accuracy_level,
        parts=parts,
        half=half,
    )


def _external(placed: _Placed, name: str) -> onnx_ir.ExternalTensor:
    import onnx_ir as ir

    return ir.ExternalTensor(
        DATA_FILE,
        placed.offset,
        placed.part.nbytes,
        ir.DataType[placed.part.type],
        shape=ir.Shape(placed.part.shape),
        name=name,
    )


def _value(placed: _Placed, name: str) -> onnx_ir.Value:
    import onnx_ir as ir

    tensor = _external(placed, name)
    return ir.Value(
        name=name,
        shape=tensor.shape,
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
