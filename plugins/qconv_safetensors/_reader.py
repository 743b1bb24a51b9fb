"""Reads artifacts back through the ``safetensors`` library, independently of the writer.

Quantized weights are decoded by the same sources that read anybody's checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput
from qconv.plugin import EncodedTensor, ModelInfo, TensorInfo

from ._sources import source_specs

if TYPE_CHECKING:
    import torch

    from qconv.plugin import Source
    from qconv.tensors import QuantTensor

_INDEX = "model.safetensors.index.json"
_NBYTES = {"64": 8, "32": 4, "16": 2}


class SafetensorsReader:
    """An opened artifact: tensors decoded on demand; memory is one tensor and its float32 values.

    The files stay open as long as the reader lives.
    """

    def __init__(self, path: Path) -> None:
        """Open the folder ``path``, or the folder of a file in it.

        Raises:
            UnreadableInput: it holds no checkpoint, or an unsound one.
            Unsupported: it is quantized in a way that is not decoded.
        """
        folder = path if path.is_dir() else path.parent
        self._opened = ExitStack()
        self._files = _open(folder, self._opened)
        stored = {name: _info(file, name) for name, file in self._files.items()}
        model = _model(folder, stored)
        self._source = _source(model)
        found = [] if self._source is None else self._source.tensors(model, self._stored)
        self._encoded = {each.name: each for each in found}
        self._tensors = _tensors(stored, self._encoded)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The model's tensors by name; the dtype of a quantized one is its grid's name."""
        return self._tensors

    @property
    def encoded(self) -> Mapping[str, EncodedTensor]:
        """The quantized tensors by name."""
        return self._encoded

    def read(self, name: str) -> torch.Tensor:
        """Decode one tensor: float32, shape as in the model."""
        if name in self._encoded:
            return self.decode(name).dequantize()
        return self._stored(name).float()

    def decode(self, name: str) -> QuantTensor:
        """A quantized tensor on its grid."""
        tensor = self._encoded[name]
        if self._source is None:
            raise ValueError("no source, and yet a quantized tensor")
        return self._source.decode(tensor, {part: self._stored(part) for part in tensor.parts})

    def _stored(self, name: str) -> torch.Tensor:
        value: torch.Tensor = self._files[name].get_tensor(name)
        return value


def _open(folder: Path, opened: ExitStack) -> dict[str, Any]:
    """The open file of every stored tensor, by name."""
    from safetensors import SafetensorError, safe_open

    files: dict[str, Any] = {}
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise UnreadableInput(f"{folder}: holds no .safetensors file; give the artifact's folder")
    for path in paths:
        try:
            file = opened.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise UnreadableInput(f"{path}: not a sound file ({error}); write it again") from error
        for name in file.keys():  # noqa: SIM118 -- not a mapping
            if name in files:
                raise UnreadableInput(
                    f"{path}: tensor {name!r} is in another shard, too; write the artifact again"
                )
            files[name] = file
    _check_index(folder, set(files))
    return files


def _check_index(folder: Path, names: set[str]) -> None:
    path = folder / _INDEX
    if not path.exists():
        return
    listed = _json(path).get("weight_map", {})
    differing = sorted(names ^ set(listed))
    if differing:
        raise UnreadableInput(
            f"{path}: tensor {differing[0]!r} is in the index or in a shard, but not in both; "
            "write the artifact again"
        )


def _info(file: Any, name: str) -> TensorInfo:  # noqa: ANN401 -- safetensors' handle, untyped
    part = file.get_slice(name)
    shape, dtype = tuple(part.get_shape()), str(part.get_dtype())
    nbytes = _NBYTES.get(dtype[-2:], 1)
    for size in shape:
        nbytes *= size
    return TensorInfo(name=name, shape=shape, dtype=dtype, nbytes=nbytes)


def _model(folder: Path, stored: Mapping[str, TensorInfo]) -> ModelInfo:
    return ModelInfo(
        kind="safetensors",
        name=folder.name,
        config=_json(folder / "config.json"),
        tensors=stored,
        files={},
        metadata={},
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableInput(f"{path}: cannot be read ({error}); write it again") from error
    if not isinstance(values, dict):
        raise UnreadableInput(f"{path}: holds no JSON object; write it again")
    return values


def _source(model: ModelInfo) -> Source | None:
    """Who decodes the quantized tensors; None where there are none."""
    if model.config.get("quantization_config") is None:
        return None
    for spec in source_specs():
        if spec.recognizes(model):
            return spec.load()()
    method = model.config["quantization_config"]
    raise UnreadableInput(
        f"{model.name}: quantization_config {str(method)[:80]} is of no kind that is decoded; "
        "write the artifact again"
    )


def _tensors(
    stored: Mapping[str, TensorInfo], encoded: Mapping[str, EncodedTensor]
) -> dict[str, TensorInfo]:
    parts = {part: each for each in encoded.values() for part in each.parts}
    infos = [info for name, info in stored.items() if name not in parts]
    for each in encoded.values():
        nbytes = sum(stored[part].nbytes for part in each.parts)
        infos.append(
            TensorInfo(name=each.name, shape=each.shape, dtype=each.grid.name, nbytes=nbytes)
        )
    return {info.name: info for info in sorted(infos, key=lambda info: info.name)}
