"""Runs a source's graph in onnxruntime, and tells what its linear weights are multiplied with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput, Unsupported
from qconv.plugin import Observed, SampleInput

from ._places import Product, find_places
from ._session import open_session, plain_options

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from qconv.plugin import ModelInfo

Places = Mapping[str, tuple[Path, int, int]]

#: Where onnxruntime looks for external data of a graph that comes as bytes.
_FOLDER = "session.model_external_initializers_file_folder_path"


def inputs_of(graph: bytes) -> dict[str, SampleInput]:
    """The inputs of a serialized graph, by name.

    Raises:
        Unsupported: one is no tensor of numbers.
    """
    import onnx

    model = onnx.load_model_from_string(graph)
    stored = {each.name for each in model.graph.initializer}
    return {each.name: _input(each) for each in model.graph.input if each.name not in stored}


def _input(value: onnx.ValueInfoProto) -> SampleInput:
    import onnx
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    if tensor.elem_type in {onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING}:
        raise Unsupported(
            f"input {value.name!r} of the graph is no tensor of numbers, so it cannot be run for "
            "statistics; use rtn without --calibration"
        )
    sizes = (each.dim_value if each.HasField("dim_value") else None for each in tensor.shape.dim)
    return SampleInput(shape=tuple(sizes), dtype=str(tensor_dtype_to_np_dtype(tensor.elem_type)))


def observe(
    model: ModelInfo,
    graph: bytes,
    places: Places,
    samples: Iterable[Mapping[str, np.ndarray[Any, Any]]],
) -> Iterator[Sequence[Observed]]:
    """Run the graph on each sample; rows are in memory for one sample at a time.

    Peak memory: the weights as onnxruntime holds them, and what it computes of one sample.

    Raises:
        BrokenPlugin, Unsupported, UnreadableInput: as :func:`open_session`.
        UnreadableInput: a sample cannot be run.
    """
    sharing = _inputs_of_weights(graph)
    session = _opened(model, graph, places, sorted(sharing))
    own = {each.name for each in session.get_inputs()}
    wanted = [name for name in sorted(sharing) if name not in own]
    for number, sample in enumerate(samples):
        found = _run(model, session, wanted, sample, number)
        yield [_observed(sharing[name], value) for name, value in found.items() if name in sharing]


def _inputs_of_weights(graph: bytes) -> dict[str, tuple[str, ...]]:
    """The weights that a value is multiplied by, by the value's name.

    Those that the graph does more with than multiply are left out.
    """
    import onnx
    import onnx_ir as ir

    found: dict[str, list[str]] = {}
    for name, places in find_places(ir.from_proto(onnx.load_model_from_string(graph))).items():
        products = [each for each in places if isinstance(each, Product)]
        if len(products) == len(places):
            for value in dict.fromkeys(str(each.x.name) for each in products):
                found.setdefault(value, []).append(name)
    return {name: tuple(weights) for name, weights in found.items()}


def _opened(model: ModelInfo, graph: bytes, places: Places, values: Sequence[str]) -> Any:  # noqa: ANN401
    """A session that also gives ``values``, its weights read from where they lie."""
    import onnx

    proto = onnx.load_model_from_string(graph)
    folders = set()
    for tensor in proto.graph.initializer:
        if tensor.name in places and tensor.data_location == onnx.TensorProto.EXTERNAL:
            file, offset, nbytes = places[tensor.name]
            folders.add(file.resolve().parent)
            del tensor.external_data[:]
            for key, value in (("location", file.resolve().name), ("offset", offset)):
                tensor.external_data.add(key=key, value=str(value))
            tensor.external_data.add(key="length", value=str(nbytes))
    if len(folders) > 1:
        raise Unsupported(
            f"{model.name}: its weights lie in {len(folders)} folders, from which onnxruntime does "
            "not run it; put all files in one folder"
        )
    known = {each.name for each in (*proto.graph.input, *proto.graph.output)}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in values if n not in known)
    options = plain_options()
    # Fused operators would compute some of the values never.
    options.graph_optimization_level = type(options.graph_optimization_level).ORT_DISABLE_ALL
    for folder in folders:
        options.add_session_config_entry(_FOLDER, str(folder))
    return open_session(proto.SerializeToString(), name=model.name, options=options)


def _run(
    model: ModelInfo,
    session: Any,  # noqa: ANN401
    wanted: Sequence[str],
    sample: Mapping[str, np.ndarray[Any, Any]],
    number: int,
) -> dict[str, np.ndarray[Any, Any]]:
    """The values asked for, and the inputs."""
    try:
        values = session.run(list(wanted), dict(sample))
    except Exception as error:  # onnxruntime raises errors of classes of its own, under no base
        raise UnreadableInput(
            f"{model.name}: onnxruntime cannot run sample {number}: "
            f"{' '.join(str(error).split())[:300]}; give samples that the model takes"
        ) from error
    return {**sample, **dict(zip(wanted, values, strict=True))}


def _observed(weights: tuple[str, ...], value: np.ndarray[Any, Any]) -> Observed:
    import torch

    rows = torch.from_numpy(value.astype("float32", copy=False).reshape(-1, value.shape[-1]))
    return Observed(weights=weights, rows=rows)
