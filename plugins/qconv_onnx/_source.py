"""An ONNX graph as a source: it is kept, and its products get quantized weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput, Unsupported

from ._export import Exported, require_onnx
from ._places import Lookup, Product, added_tables, arrangement_of, find_places, heads_of, sizes_of

if TYPE_CHECKING:
    import onnx_ir

    from qconv.plugin import Dropped, ModelInfo

#: Operators of graphs whose weights are quantized already.
_QUANTIZED = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "GatherBlockQuantized",
        "MatMulBnb4",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QLinearConv",
        "QLinearMatMul",
    }
)
#: The two names of the domain of the ONNX standard.
_STANDARD, _ALIAS = "", "ai.onnx"

#: The IR version from which on initializers need not be inputs.
_INITIALIZERS_ALONE = 4

#: What may come between an input and a lookup, how much of it, and what inputs with positions are
#: called.
_RESHAPES = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_NEAR = 4
_POSITIONS = "position"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceGraph(Exported):
    """The graph of a source.

    defaults: weights that are inputs, too, which callers may give other values
    kernels: weights that it convolves with, and does nothing else, and their sizes
    lookups: weights that it takes rows of
    vocabularies: of these, those of which inputs choose the rows, as tokens do
    multiplied: weights that it multiplies by, of these, too
    opset: of the ONNX standard
    is_decoder: it predicts tokens from keys and values of earlier ones
    """

    defaults: frozenset[str]
    kernels: Mapping[str, tuple[int, ...]]
    lookups: frozenset[str]
    vocabularies: frozenset[str]
    multiplied: frozenset[str]
    opset: int
    is_decoder: bool


def source_graph(info: ModelInfo) -> SourceGraph:
    """The graph of an ``.onnx`` source.

    Raises:
        BrokenPlugin: onnx is not installed.
        UnreadableInput: it is no sound graph.
        Unsupported: it is quantized already, or holds weights that are no initializers.
    """
    model = _parsed(info)
    _name_standard(model)
    _refuse_unsound(info, model)
    _refuse_quantized(info, model)
    _refuse_hidden_weights(info, model)
    used, unused = _split(model)
    for name in unused:
        model.graph.initializers.pop(name)
    return SourceGraph(
        graph=_serialized(info, model),
        weights=tuple(name for name in info.tensors if name in used),
        dropped=tuple(_dropped(name) for name in info.tensors if name not in used),
        embedding=None,
        head=None,
        defaults=frozenset(str(each.name) for each in model.graph.inputs) & used,
        **_roles(model),
        opset=model.graph.opset_imports.get(_STANDARD, 1),
        is_decoder=any(str(each.name).startswith("past_key_values") for each in model.graph.inputs),
    )


def _roles(model: onnx_ir.Model) -> dict[str, Any]:
    """What the graph does with its weights: the fields of :class:`SourceGraph`."""
    found = find_places(model)
    kinds = {name: {type(place) for place in places} for name, places in found.items()}
    weights = model.graph.initializers
    vocabularies = frozenset(
        name
        for name, places in found.items()
        if Lookup in kinds[name]
        and all(_is_chosen(each.x) for each in places if isinstance(each, Lookup))
    )
    return {
        "products": {
            name: arrangement_of(places)
            for name, places in found.items()
            if kinds[name] == {Product}
        },
        "kernels": {
            name: sizes_of(weights[name])
            for name, places in found.items()
            if arrangement_of(places) == "flat"
        },
        "lookups": frozenset(name for name in found if Lookup in kinds[name]),
        "vocabularies": vocabularies,
        "added": added_tables(found, vocabularies),
        "multiplied": frozenset(name for name in found if Product in kinds[name]),
        "heads": heads_of(found),
    }


def _is_chosen(rows: onnx_ir.Value) -> bool:
    """The numbers of rows are an input as it is, or reshaped, and not positions.

    Tables by position are no embeddings of what a model reads: often they are angles, which errors
    of 8 bits add up in.
    """
    value: onnx_ir.Value | None = rows
    for _ in range(_NEAR):
        node = None if value is None else value.producer()
        if node is None or node.op_type not in _RESHAPES:
            break
        value = node.inputs[0] if node.inputs else None
    if value is None or not value.is_graph_input():
        return False
    return _POSITIONS not in str(value.name).lower()


def _parsed(info: ModelInfo) -> onnx_ir.Model:
    require_onnx()
    import onnx
    import onnx_ir as ir

    data: bytes = info.metadata["graph"]
    try:
        return ir.from_proto(onnx.load_model_from_string(data))
    except Exception as error:  # onnx_ir raises errors of many classes
        raise _unsound(info, error) from error


def _name_standard(model: onnx_ir.Model) -> None:
    """Call the domain of the ONNX standard by its shorter name, as onnx_ir has it in all nodes."""
    imports = model.graph.opset_imports
    if _ALIAS in imports:
        imports.setdefault(_STANDARD, imports.pop(_ALIAS))


def _refuse_unsound(info: ModelInfo, model: onnx_ir.Model) -> None:
    """Every value of the main graph must come from somewhere, every node must have an operator."""
    graph = model.graph
    known = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        lacking = [each for each in node.inputs if each and each not in known]
        lacking = [each for each in lacking if each.producer() is None]
        if lacking or not node.op_type:
            what = f"takes {lacking[0].name!r}, which nothing gives" if lacking else "has no type"
            raise UnreadableInput(
                f"{info.name}: not a sound ONNX graph: node {node.name!r} ({node.op_type}) {what}; "
                "check it with onnx.checker, or get it anew"
            )


def _refuse_quantized(info: ModelInfo, model: onnx_ir.Model) -> None:
    found = [node for node in _all_nodes(model) if node.op_type in _QUANTIZED]
    if found:
        raise Unsupported(
            f"{info.name}: the graph is quantized already ({len(found)} nodes such as "
            f"{found[0].op_type} {found[0].name!r}); quantize the float model it was made from"
        )


def _refuse_hidden_weights(info: ModelInfo, model: onnx_ir.Model) -> None:
    """Values in other files that are no initializers of the main graph would be lost."""
    import onnx_ir as ir

    for name, tensor in _hidden(model):
        if isinstance(tensor, ir.ExternalTensor):
            raise Unsupported(
                f"{info.name}: {name!r} is no initializer of the main graph, and its values lie in "
                "another file; save the model with its constants as initializers, for example "
                "with onnxruntime's optimizer"
            )


def _hidden(model: onnx_ir.Model) -> Iterator[tuple[str, Any]]:
    """Tensors in nodes, and initializers of graphs within nodes."""
    for node in _all_nodes(model):
        for name, attribute in node.attributes.items():
            kind, value = attribute.type.name, attribute.value
            held = value if kind in {"TENSORS", "GRAPHS"} else [value]
            if value is None:  # in a function: given where it is called
                continue
            if kind in {"TENSOR", "TENSORS"}:
                yield from ((f"{node.name} {name}", each) for each in held)
            if kind in {"GRAPH", "GRAPHS"}:
                inner = [each for graph in held for each in graph.initializers.values()]
                yield from ((str(each.name), each.const_value) for each in inner)


def _all_nodes(model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    """Of the graph, of graphs within its nodes, and of functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _split(model: onnx_ir.Model) -> tuple[set[str], list[str]]:
    """Names of the initializers that are used, and of those that are not.

    In graphs before IR version 4 all initializers had to be inputs; since then those that are have
    a value that callers may replace: https://github.com/onnx/onnx/blob/main/docs/IR.md.
    """
    graph = model.graph
    used, unused = set(), []
    for name, value in graph.initializers.items():
        if value.is_graph_input() and model.ir_version < _INITIALIZERS_ALONE:
            graph.inputs.remove(value)
        if value.uses() or value.is_graph_input() or value.is_graph_output():
            used.add(name)
        else:
            unused.append(name)
    return used, unused


def _dropped(name: str) -> Dropped:
    from qconv.plugin import Dropped

    return Dropped(name=name, reason="nothing in the graph uses it")


def _serialized(info: ModelInfo, model: onnx_ir.Model) -> bytes:
    import onnx_ir as ir

    from ._export import IR_VERSION

    model.ir_version = max(model.ir_version, IR_VERSION)
    try:
        data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    except Exception as error:  # as above
        raise _unsound(info, error) from error
    return data


def _unsound(info: ModelInfo, error: Exception) -> UnreadableInput:
    told = " ".join(str(error.__cause__ or error).split())[:300]
    return UnreadableInput(
        f"{info.name}: not a sound ONNX graph: {told}; check it with onnx.checker, or get it anew"
    )
