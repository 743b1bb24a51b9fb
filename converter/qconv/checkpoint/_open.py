"""Opens a source checkpoint: finds its files, parses their headers, and joins them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.checkpoint._directory import member, read_companions
from qconv.checkpoint._faults import shown
from qconv.checkpoint._files import FileCheckpoint, OpenedFile
from qconv.checkpoint._gguf_header import parse_gguf
from qconv.checkpoint._locate import Source, locate
from qconv.checkpoint._mapped import MappedFile
from qconv.checkpoint._onnx_header import parse_onnx
from qconv.checkpoint._safetensors import parse_safetensors
from qconv.checkpoint._strict_json import parse_object
from qconv.errors import UnreadableInput
from qconv.plugin import ModelInfo

if TYPE_CHECKING:
    from qconv.checkpoint._gguf_value import GgufValue
    from qconv.checkpoint._stored import StoredTensor


@dataclass(frozen=True, slots=True)
class _Weights:
    """What the weight files hold together."""

    files: tuple[OpenedFile, ...]
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, Any]


def open_checkpoint(path: str | Path, *, require_config: bool = True) -> FileCheckpoint:
    """Open a Hugging Face directory, a safetensors file or index, a GGUF file, or an ONNX graph.

    Only headers and the small companion files are read. GGUF shards open from the first one.

    require_config: False opens safetensors without a config.json, and single shards

    Raises:
        UnreadableInput: the source is missing, malformed or hostile, or not a checkpoint.
    """
    source = locate(Path(path), whole=require_config)
    companions = {} if source.directory is None else read_companions(source.directory)
    config = _config(source, companions, require_config=require_config)
    with contextlib.ExitStack() as opened:
        read = {"gguf": _gguf, "onnx": _onnx, "safetensors": _safetensors}[source.kind]
        weights = read(source, opened)
        if not weights.tensors:
            raise UnreadableInput(f"{path}: holds no tensors; check that this is the model's file")
        model = ModelInfo(
            kind=source.kind,
            name=source.name,
            config=config,
            tensors={name: tensor.info for name, tensor in weights.tensors.items()},
            files=companions,
            metadata=weights.metadata,
        )
        checkpoint = FileCheckpoint(
            model=model,
            tensors=weights.tensors,
            files=weights.files,
            warnings=(*source.warnings, *_quantized_already(weights.tensors.values())),
        )
        opened.pop_all()
    return checkpoint


def _config(
    source: Source, companions: Mapping[str, bytes], *, require_config: bool
) -> dict[str, Any]:
    if source.directory is None:
        return {}
    path = source.directory / "config.json"
    if "config.json" in companions:
        return parse_object(companions["config.json"], str(path))
    if not require_config or source.kind == "onnx":
        return {}
    raise UnreadableInput(
        f"{path}: not found, but safetensors need a config.json beside them; "
        "get it from the model's publisher and put it there"
    )


def _mapped(source: Source, opened: contextlib.ExitStack) -> Iterator[MappedFile]:
    for path in source.weights:
        file = MappedFile(path)
        opened.callback(file.close)
        yield file


def _safetensors(source: Source, opened: contextlib.ExitStack) -> _Weights:
    files: list[OpenedFile] = []
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    names = dict(zip(source.weights, _shards(source), strict=True))
    for file in _mapped(source, opened):
        header = parse_safetensors(file)
        files.append(OpenedFile(file, header.raw))
        _join(tensors, header.tensors)
        metadata.update(header.metadata)
        if source.index:
            _check_shard(file.path, names[file.path], header.tensors, source.index)
    _check_missing(source, tensors)
    return _Weights(tuple(files), tensors, metadata)


def _check_missing(source: Source, tensors: Mapping[str, StoredTensor]) -> None:
    missing = sorted(source.index.keys() - tensors.keys())
    if missing:
        raise UnreadableInput(
            f"{source.directory}: the index names tensor {shown(missing[0])} in "
            f"{source.index[missing[0]]!r}, which does not hold it ({len(missing)} such tensors); "
            "the model is incomplete, get all its files anew"
        )


def _shards(source: Source) -> list[str]:
    if source.index:
        return sorted(set(source.index.values()))
    return [path.name for path in source.weights]


def _check_shard(
    path: Path, shard: str, tensors: Iterable[StoredTensor], index: Mapping[str, str]
) -> None:
    for tensor in tensors:
        name = tensor.info.name
        said = index.get(name)
        if said != shard:
            says = "does not name it" if said is None else f"says it is in {said!r}"
            raise UnreadableInput(
                f"{path}: tensor {name!r}: the index {says}; "
                "index and shards do not belong together, get all files anew"
            )


def _gguf(source: Source, opened: contextlib.ExitStack) -> _Weights:
    files: list[OpenedFile] = []
    tensors: dict[str, StoredTensor] = {}
    first: Mapping[str, GgufValue] = {}
    for number, file in enumerate(_mapped(source, opened)):
        header = parse_gguf(file)
        _check_split(file.path, header.metadata, number, len(source.weights))
        files.append(OpenedFile(file, header.raw))
        _join(tensors, header.tensors)
        first = first or header.metadata
    _check_total(source, first, len(tensors))
    # The checkpoint is whole again; the keys of the split would mislead whoever copies metadata.
    metadata = {key: value for key, value in first.items() if not key.startswith("split.")}
    return _Weights(tuple(files), tensors, metadata)


def _onnx(source: Source, opened: contextlib.ExitStack) -> _Weights:
    """A graph and the files beside it that its weights lie in."""
    beside: dict[str, MappedFile] = {}

    def external(name: str) -> MappedFile:
        if name not in beside:
            beside[name] = MappedFile(member(source.directory or Path(), name))
            opened.callback(beside[name].close)
        return beside[name]

    (file,) = _mapped(source, opened)
    header = parse_onnx(file, external)
    files = [OpenedFile(file, header.graph), *(OpenedFile(each, b"") for each in beside.values())]
    tensors = {tensor.info.name: tensor for tensor in header.tensors}
    return _Weights(tuple(files), tensors, {"graph": header.graph})


def _check_split(path: Path, metadata: Mapping[str, GgufValue], number: int, count: int) -> None:
    """Compare what a shard says of itself with its file name; an unsplit file says nothing."""
    said_count, said_number = _whole(metadata, "split.count", 1), _whole(metadata, "split.no", 0)
    if (said_number, said_count) != (number, count):
        raise UnreadableInput(
            f"{path}: says it is shard {said_number + 1} of {said_count}, but is named as shard "
            f"{number + 1} of {count}; give the shards their original names "
            "(NAME-00001-of-0000N.gguf)"
        )


def _check_total(source: Source, metadata: Mapping[str, GgufValue], found: int) -> None:
    said = _whole(metadata, "split.tensors.count", found)
    if said != found:
        raise UnreadableInput(
            f"{source.weights[0]}: split.tensors.count is {said}, but the shards hold {found} "
            "tensors; get all shards anew"
        )


def _whole(metadata: Mapping[str, GgufValue], key: str, default: int) -> int:
    stored = metadata.get(key)
    value = default if stored is None else stored.value
    return value if isinstance(value, int) else -1


def _join(tensors: dict[str, StoredTensor], more: Iterable[StoredTensor]) -> None:
    for tensor in more:
        other = tensors.setdefault(tensor.info.name, tensor)
        if other is not tensor:
            raise UnreadableInput(
                f"{tensor.file.path}: tensor {tensor.info.name!r} is in {other.file.path.name!r} "
                "too; the shards do not belong together, get them anew"
            )


def _quantized_already(tensors: Iterable[StoredTensor]) -> tuple[str, ...]:
    kinds = Counter(tensor.info.dtype for tensor in tensors if not tensor.is_plain)
    if not kinds:
        return ()
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    warning = (
        f"the source is quantized already ({listed} tensors); quantizing it again loses more "
        "quality than quantizing the original float model"
    )
    return (warning,)
