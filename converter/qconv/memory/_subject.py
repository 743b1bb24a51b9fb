"""What is asked about: a checkpoint or artifact on disk, and the shape of the model in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.checkpoint import parse_object
from qconv.errors import UnreadableInput, UsageError
from qconv.memory._config import shape_of_config
from qconv.memory._gguf import shape_of_gguf
from qconv.memory._predict import make_setting, predict
from qconv.memory._weights import Weights, stored_weights

if TYPE_CHECKING:
    from qconv._host import Host
    from qconv._sources import OpenedSource
    from qconv.memory._result import VramResult
    from qconv.memory._shape import ModelShape
    from qconv.plugin import ModelInfo

#: What loads a container, the usual runtime first.
RUNTIMES = {
    "gguf": ("llama.cpp",),
    "safetensors": ("vllm", "transformers"),
    "onnx": ("onnxruntime",),
}

_CONFIG = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model on disk.

    kind: of its container: ``gguf``, ``safetensors`` or ``onnx``
    shape: of the model in it
    weights: as stored
    source: opened, for planning; None where it can only be served
    """

    path: Path
    kind: str
    shape: ModelShape
    weights: Weights
    source: OpenedSource | None


@contextmanager
def open_subject(path: str | Path, host: Host) -> Iterator[Subject]:
    """Open a model, quantized or not.

    Raises:
        UnreadableInput: it is missing, malformed or hostile, or no model.
        Unsupported: the memory of its architecture cannot be predicted.
    """
    from qconv._sources import open_source
    from qconv.checkpoint import DecodedCheckpoint

    place = Path(path)
    if onnx := _onnx_files(place):
        yield _onnx_subject(place, onnx)
        return
    with open_source(place, host) as source:
        stored = source.stored.model if isinstance(source, DecodedCheckpoint) else source.model
        yield Subject(
            path=place,
            kind=stored.kind,
            shape=model_shape(stored),
            weights=stored_weights(stored),
            source=source,
        )


def predict_artifact(
    path: str | Path,
    *,
    context: int,
    batch: int = 1,
    cache_type: str | None = None,
    runtime: str | None = None,
    device: str = "cuda",
) -> VramResult:
    """What serving an artifact takes; ``runtime`` None for the usual one of its container.

    Raises:
        UnreadableInput: it is missing, malformed or hostile, or no model.
        Unsupported: the memory of its architecture cannot be predicted.
        UsageError: the runtime does not load it, or lacks the cache type.
    """
    from qconv._host import load_plugins

    with open_subject(path, load_plugins()) as subject:
        usual = RUNTIMES[subject.kind]
        if runtime is not None and runtime not in usual:
            raise UsageError(f"{path}: not loaded by {runtime!r}, but by {', '.join(usual)}")
        setting = make_setting(
            runtime or usual[0], context=context, batch=batch, cache_type=cache_type
        )
        return predict(subject.shape, subject.weights, setting, device=device)


def model_shape(model: ModelInfo) -> ModelShape:
    """The shape of a checkpoint's model, from config.json or a GGUF's metadata."""
    if model.kind == "gguf":
        return shape_of_gguf(plain_metadata(model), model.tensors, model.name)
    return shape_of_config(model.config, model.name)


def plain_metadata(model: ModelInfo) -> Mapping[str, Any]:
    """A GGUF's metadata without its types."""
    return {key: value.value for key, value in model.metadata.items()}


def _onnx_files(path: Path) -> list[Path]:
    """The graph and its weights, where ``path`` is a graph or a folder with nothing else."""
    if path.suffix == ".onnx" and path.is_file():
        return _with_data([path])
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return []
    return _with_data(sorted(path.glob("*.onnx")))


def _with_data(graphs: list[Path]) -> list[Path]:
    """Graphs with the files beside them that hold their weights."""
    beside = [
        each
        for graph in graphs
        for each in sorted(graph.parent.glob(f"{graph.name}*"))
        if each.name != graph.name and each.suffix != ".json"
    ]
    return [*graphs, *beside]


def _onnx_subject(path: Path, files: list[Path]) -> Subject:
    folder = path if path.is_dir() else path.parent
    config = folder / _CONFIG
    try:
        data = config.read_bytes()
        nbytes = {file.name: file.stat().st_size for file in files}
    except OSError as error:
        raise UnreadableInput(
            f"{config}: cannot be read ({error}), but says what a graph keeps of past tokens; "
            "put the model's config.json beside the graph"
        ) from error
    shape = shape_of_config(parse_object(data, str(config)), folder.name)
    return Subject(path=path, kind="onnx", shape=shape, weights=Weights(nbytes=nbytes), source=None)
