"""The ONNX backend: plans, lays out, encodes and opens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.errors import QconvError, Unsupported, UnsupportedGrid

from ._export import export_graph
from ._genai import FILE, genai_config
from ._layout import GRAPH_FILE, lay_out
from ._observe import inputs_of, observe
from ._options import read_scheme
from ._parts import pack
from ._planner import PlannedTensor, plan
from ._skeleton import is_decoder
from ._source import source_graph
from ._source_plan import plan_source

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qconv.plugin import (
        ArtifactReader,
        Layout,
        ModelInfo,
        Observed,
        PlanRequest,
        SampleInput,
        TensorPlan,
        TensorPlans,
    )
    from qconv.tensors import QuantTensor

    from ._export import Exported
    from ._onnxruntime import OnnxRuntime
    from ._options import Scheme
    from ._source import SourceGraph

#: Companions that say how a source was split or quantized.
_STALE = frozenset({"model.safetensors.index.json", "recipe.yaml"})


class OnnxBackend:
    """Writes folders that onnxruntime runs: a graph, its weights, tokenizer and configs."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Exported | QconvError]] = {}
        self._sources: dict[str, SourceGraph] = {}

    def plan_tensors(self, request: PlanRequest) -> TensorPlans:
        """Export the graph; put the linear weights of its blocks on the format's grid.

        Raises:
            UsageError: an option is unknown to the format.
            BrokenPlugin: a library that this needs is not installed.
            Unsupported: the architecture or format cannot be written.
            UnsupportedGrid: the groups do not divide a weight's columns.
        """
        model = request.model
        if model.kind == "onnx":
            graph = self._source(model)
            return plan_source(request, read_scheme(request, is_decoder=graph.is_decoder), graph)
        scheme = read_scheme(request, is_decoder=is_decoder(model))
        return plan(request, scheme, self._exported(request, scheme))

    def layout(self, request: PlanRequest, plans: TensorPlans) -> Layout:
        """A folder ``<model>-ONNX-<FORMAT>``."""
        model = request.model
        graph: Exported
        if model.kind == "onnx":
            source = graph = self._source(model)
            scheme = read_scheme(request, is_decoder=source.is_decoder)
        else:
            scheme = read_scheme(request, is_decoder=is_decoder(model))
            graph = self._exported(request, scheme)
        folder = f"{_stem(model)}-ONNX-{scheme.format.upper()}"
        companions = _companions(model, graph)
        tensors = [_planned(each) for each in plans.tensors]
        return lay_out(folder, scheme, graph, tensors, companions)

    def encode(
        self, plan: TensorPlan, value: QuantTensor | torch.Tensor
    ) -> Sequence[bytes | memoryview]:
        """Encode a tensor, or a slab of its rows, to the bytes of each of its parts.

        Raises:
            UnsupportedGrid: the operator does not compute with the value's grid.
        """
        import torch

        operator = _planned(plan).operator
        if isinstance(value, torch.Tensor):
            return [value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data]
        if operator is None:
            raise UnsupportedGrid(
                f"plugin author: tensor {plan.name!r} was planned to stay float, and came quantized"
            )
        return [each.tobytes() for each in pack(operator, value)]

    def open(self, path: Path) -> ArtifactReader:
        """Open a folder with a reader that shares no code with this writer.

        Raises:
            UnreadableInput: the folder holds no sound artifact.
        """
        from ._reader import OnnxReader

        return OnnxReader(path)

    def runtime(self, path: Path, context: int = 512, device: str = "auto") -> OnnxRuntime:
        """Load a folder into onnxruntime.

        context: most tokens at once; device: what it computes on, see :class:`qconv.plugin.Runtime`

        Raises:
            BrokenPlugin: onnxruntime, or a library that it needs, is not installed.
            UnreadableInput: onnxruntime refuses the folder.
        """
        from ._onnxruntime import OnnxRuntime

        return OnnxRuntime(path, context=context, device=device)

    def graph_inputs(self, model: ModelInfo) -> Mapping[str, SampleInput]:
        """The inputs that a run of an ``.onnx`` source takes, by name."""
        return inputs_of(self._source(model).graph)

    def observe(
        self,
        model: ModelInfo,
        places: Mapping[str, tuple[Path, int, int]],
        samples: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    ) -> Iterator[Sequence[Observed]]:
        """Run an ``.onnx`` source in onnxruntime, and tell what its weights were multiplied with.

        Raises:
            BrokenPlugin, Unsupported: onnxruntime is missing, or does not know the graph.
            UnreadableInput: it refuses the graph or a sample.
        """
        return observe(model, self._source(model).graph, places, samples)

    def _exported(self, request: PlanRequest, scheme: Scheme) -> Exported:
        """The graph; layout gets the one that was planned with, and other targets, too.

        For a plan that nothing is written by, that of another float type will do.
        """
        model = request.model
        shapes = [[name, list(info.shape)] for name, info in model.tensors.items()]
        key = json.dumps([dict(model.config), shapes, scheme.kv_cache])
        known = self._known.setdefault(key, {})
        dtype = scheme.dtype if request.exact else next(iter(known), scheme.dtype)
        if dtype not in known:
            try:
                known[dtype] = export_graph(model, dtype=dtype, kv_cache=scheme.kv_cache)
            except QconvError as error:  # which takes as long to find as a graph
                known[dtype] = error
        found = known[dtype]
        if isinstance(found, QconvError):
            raise found
        return found

    def _source(self, model: ModelInfo) -> SourceGraph:
        """The graph that the source is."""
        key = hashlib.sha256(model.metadata["graph"]).hexdigest()
        if key not in self._sources:
            self._sources[key] = source_graph(model)
        return self._sources[key]


def _companions(model: ModelInfo, graph: Exported) -> list[tuple[str, bytes]]:
    """What lies beside the graph: the source's own files, and what onnxruntime-genai reads."""
    files = {name: data for name, data in model.files.items() if name not in _STALE}
    made = None if model.kind == "onnx" else genai_config(model, graph.graph, GRAPH_FILE)
    if made is not None and FILE not in files:
        files[FILE] = made
    return sorted(files.items())


def _stem(model: ModelInfo) -> str:
    """The model's name, fit for a folder's."""
    return model.name.replace("/", "-").replace("\\", "-") or "model"


def _planned(plan: TensorPlan) -> PlannedTensor:
    if not isinstance(plan, PlannedTensor):
        raise Unsupported(
            f"plugin author: tensor {plan.name!r} was not planned by the onnx backend"
        )
    return plan
