"""A tiny model, its artifacts, and ways to damage them where they lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import qconv
from plugins.gguf_models import TEMPLATE, byte_level_files, llama_config, save_model

if TYPE_CHECKING:
    import torch

    from qconv.validation import ArtifactResult, Validation

#: As of a model that speaks.
CONFIG = {"chat_template": TEMPLATE, "bos_token": "<|start|>", "eos_token": "<|end|>"}


def model_at(folder: Path, **changes: Any) -> Path:
    """A Llama of two blocks with a byte-level tokenizer and a chat template."""
    files = byte_level_files()
    config = json.loads(files["tokenizer_config.json"])
    if "chat_template" not in config:
        files["tokenizer_config.json"] = json.dumps({**config, **CONFIG}).encode()
    return save_model(folder, llama_config(**changes), files)


def converted(source: Path, target: str, out: Path, **options: Any) -> Path:
    """An artifact, unchecked."""
    done = qconv.convert(source, target, out=out, validate=False, **options)
    first = done.artifacts[0].files[0]
    return first if first.parent == out else first.parent


def validated(artifact: Path, source: Path, **options: Any) -> ArtifactResult:
    """The result for one artifact, at depth ``bytes`` unless told otherwise."""
    found: Validation = qconv.validate(artifact, source, **{"depth": "bytes", **options})
    (result,) = found.artifacts
    return result


def faults_of(result: ArtifactResult) -> dict[str, str]:
    """What is wrong with each tensor, by name."""
    return {each.name: "; ".join(each.faults) for each in result.tensors if each.faults}


def edit_bytes(path: Path, offset: int, change: Callable[[bytearray], None], nbytes: int) -> None:
    data = bytearray(path.read_bytes())
    part = data[offset : offset + nbytes]
    change(part)
    data[offset : offset + nbytes] = part
    path.write_bytes(data)


def edit_gguf(path: Path, tensor: str, change: Callable[[np.ndarray], None]) -> None:
    """Change the stored bytes of a tensor: (rows, bytes of a row)."""
    entry = next(each for each in gguf.GGUFReader(path).tensors if each.name == tensor)
    shape, nbytes, offset = entry.data.shape, int(entry.n_bytes), int(entry.data_offset)
    data = bytearray(path.read_bytes())
    rows = np.frombuffer(data, np.uint8, nbytes, offset).reshape(shape[0], -1).copy()
    change(rows)
    data[offset : offset + nbytes] = rows.tobytes()
    path.write_bytes(data)


def replace_in(path: Path, old: bytes, new: bytes) -> None:
    """Put ``new`` in the place of ``old``, everywhere; of the same length."""
    data = path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def edit_safetensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)


def edit_onnx(folder: Path, name: str, change: Callable[[np.ndarray], None], dtype: Any) -> None:
    """Change the values of an initializer in the file of weights."""
    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    stored = next(each for each in graph.initializer if each.name == name)
    entry = {each.key: each.value for each in stored.external_data}
    path = folder / entry["location"]
    data = bytearray(path.read_bytes())
    offset, nbytes = int(entry.get("offset", "0")), int(entry["length"])
    values = np.frombuffer(data, dtype, nbytes // np.dtype(dtype).itemsize, offset).copy()
    change(values)
    data[offset : offset + nbytes] = values.tobytes()
    path.write_bytes(data)
