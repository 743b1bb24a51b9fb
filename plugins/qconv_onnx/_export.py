"""The graph of a model, without its weights: torch's ONNX exporter on fake tensors.

Peak memory: the graph, and what torch and transformers take to make it (0.5 to 0.6 GB), whatever
the size of the model.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from qconv.errors import BrokenPlugin, Unsupported

from ._attention import shorten_attention
from ._failures import summary
from ._idle import remove_idle
from ._norms import divide_by_roots
from ._places import Lookup, Product, added_tables, arrangement_of, find_places, heads_of
from ._signature import ALL, NEW, PAST, signature_of

if TYPE_CHECKING:
    import onnx_ir

    from qconv.plugin import Arrangement, Dropped, ModelInfo

    from ._signature import Signature
    from ._skeleton import Skeleton

#: The oldest opset with blocked DequantizeLinear and 4-bit integers, and the IR version it came in.
OPSET, IR_VERSION = 21, 10

#: File that the weights are in, beside the graph.
DATA_FILE = "model.onnx.data"

_LOGGER = "torch.onnx._internal.exporter._registration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A graph and what it needs of the checkpoint.

    graph: the serialized ModelProto; its weights are external, at no particular offset
    weights: the source tensors it uses, which its initializers are called after
    products: of these, weights that it multiplies by and does nothing else with, and how each
        becomes (out, in)
    heads: of these, those whose products are outputs, but for a bias and the like
    added: of these, tables whose rows are added to rows of the embedding, as of positions
    embedding, head: of these, the token embedding and the output projection, which may be one;
        None: there is none, or the graph does something else with it
    dropped: source tensors it does not use, by a rule
    """

    graph: bytes
    weights: tuple[str, ...]
    products: Mapping[str, Arrangement]
    heads: frozenset[str]
    added: frozenset[str]
    embedding: str | None
    head: str | None
    dropped: tuple[Dropped, ...]


def export_graph(info: ModelInfo, *, dtype: str, kv_cache: bool) -> Exported:
    """Export the model that ``config.json`` describes.

    dtype: torch dtype name that it computes in
    kv_cache: of a decoder: with keys and values of earlier tokens as inputs

    Raises:
        BrokenPlugin: a library that this needs is not installed.
        Unsupported: transformers or the exporter cannot serve the architecture.
        UnreadableInput: the config is malformed.
    """
    require_onnx()
    from ._skeleton import build_skeleton

    with _quietly():
        skeleton = build_skeleton(info, dtype)
        signature = signature_of(skeleton, kv_cache=kv_cache)
        model = _export(info, signature)
    divide_by_roots(model)
    remove_idle(model.graph)
    shorten_attention(model)
    used = _name_weights(model, skeleton)
    _name_axes(model, signature)
    return Exported(
        graph=_serialized(model),
        weights=tuple(name for name in info.tensors if name in used),
        **_roles(model, skeleton),
        dropped=(*skeleton.dropped, *_unused(skeleton, used)),
    )


def _roles(model: onnx_ir.Model, skeleton: Skeleton) -> dict[str, Any]:
    """Products, heads, added tables, embedding and head of :class:`Exported`."""
    found = find_places(model)
    kinds = {name: {type(place) for place in places} for name, places in found.items()}
    embedding = skeleton.embedding
    head = skeleton.head
    return {
        "products": {
            name: arrangement_of(places)
            for name, places in found.items()
            if kinds[name] == {Product}
        },
        "heads": heads_of(found),
        "added": added_tables(found, [embedding] if embedding else []),
        "embedding": embedding if Lookup in kinds.get(embedding or "", ()) else None,
        "head": head if Product in kinds.get(head or "", ()) else None,
    }


def require_onnx() -> None:
    """Raise unless the libraries that graphs are made and read with are installed.

    Raises:
        BrokenPlugin: one is not.
    """
    try:
        import onnx
        import onnx_ir
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BrokenPlugin(
            f"the onnx backend needs onnx and onnxscript, which cannot be imported: {error}; "
            "pip install 'qconv[onnx]'"
        ) from error
    del onnx, onnx_ir


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch says of torchvision, and of dimension names that are the same."""
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _export(info: ModelInfo, signature: Signature) -> onnx_ir.Model:
    import torch

    shapes = [
        dict.fromkeys(signature.axes[name], torch.export.Dim.DYNAMIC) for name in signature.inputs
    ]
    arguments = (list(signature.inputs.values()),)
    try:
        with torch.no_grad():
            program: Any = torch.onnx.export(
                signature.module,
                arguments,
                dynamo=True,
                opset_version=OPSET,
                optimize=False,  # it would read weights, which are not there
                dynamic_shapes=(shapes,),
                input_names=list(signature.inputs),
                output_names=list(signature.outputs),
                verbose=False,
            )
    except Exception as error:  # the exporter runs foreign code and raises anything
        again = partial(
            torch.export.export,
            signature.module,
            arguments,
            dynamic_shapes=(shapes,),
            strict=False,
        )
        raise Unsupported(
            f"{info.name}: torch {torch.__version__} cannot export "
            f"{info.config.get('model_type')!r} to ONNX: {summary(error, again)}; "
            "use another format, or a newer torch (--debug shows, --report DIR keeps all of it)"
        ) from error
    model: onnx_ir.Model = program.model
    return model


def _name_weights(model: onnx_ir.Model, skeleton: Skeleton) -> set[str]:
    """Call parameters what the checkpoint calls them, and say that they lie in another file."""
    import onnx_ir as ir

    graph, used = model.graph, set()
    for name, value in list(graph.initializers.items()):
        source = skeleton.sources.get(name.removeprefix("model."))
        if source is None or value.const_value is None:
            continue
        tensor = value.const_value
        value.name = source
        value.const_value = ir.ExternalTensor(
            DATA_FILE, None, None, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=source
        )
        used.add(source)
    return used


def _unused(skeleton: Skeleton, used: set[str]) -> list[Dropped]:
    from qconv.plugin import Dropped

    unused = sorted(set(skeleton.sources.values()) - used)
    return [Dropped(name=name, reason="no output of the graph depends on it") for name in unused]


def _name_axes(model: onnx_ir.Model, signature: Signature) -> None:
    """Call dynamic dimensions what optimum calls them, in all the graph."""
    import onnx_ir as ir

    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for dimension, name in signature.axes[value.name or ""].items():
            names[str(value.shape[dimension])] = name  # type: ignore[index]
    for value in _values(model.graph):
        if value.shape is not None:
            value.shape = ir.Shape([_axis(size, names) for size in value.shape])


def _axis(size: int | onnx_ir.SymbolicDim, names: Mapping[str, str]) -> int | str:
    """A dimension under its own name; of a sum, under the sum of its names."""
    if isinstance(size, int):
        return size
    terms = [names.get(term, term) for term in str(size).split(" + ")]
    return ALL if set(terms) == {PAST, NEW} else " + ".join(terms)


def _values(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _serialized(model: onnx_ir.Model) -> bytes:
    """The bytes, without where in whose source code a node comes from."""
    import onnx_ir as ir

    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "qconv", None
    model.doc_string = None
    model.metadata_props.clear()
    model.graph.name = "model"
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.doc_string = None
        node.metadata_props.clear()
    for value in (*_values(model.graph), *model.graph.initializers.values()):
        value.doc_string = None
        value.metadata_props.clear()
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data
