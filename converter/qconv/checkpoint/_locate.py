"""Finds out what a path names, and which weight files belong to it; opens none of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qconv.checkpoint._directory import member, names, read_index
from qconv.checkpoint._faults import shown
from qconv.checkpoint._mapped import refuse_irregular
from qconv.errors import UnreadableInput

_SAFETENSORS = ".safetensors"
_INDEX = ".safetensors.index.json"
_GGUF = ".gguf"
_ONNX = ".onnx"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")

_ACCEPTED = (
    "pass a Hugging Face directory, a .safetensors file, a .safetensors.index.json, a .gguf or an "
    ".onnx file"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The files of a checkpoint.

    directory: where the companions lie; None when it has none
    weights: the weight files, links followed
    index: shard file name by tensor name, when there is an index
    """

    kind: Literal["safetensors", "gguf", "onnx"]
    name: str
    directory: Path | None
    weights: tuple[Path, ...]
    index: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def locate(path: Path, *, whole: bool) -> Source:
    """Tell what kind of checkpoint ``path`` is.

    whole: refuse one shard of several safetensors files

    Raises:
        UnreadableInput: nothing is there, or it is no checkpoint, or more than one.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise UnreadableInput(f"{path}: cannot be opened: {error}; {_ACCEPTED}") from error
    if path.is_dir():
        return _in_directory(path)
    refuse_irregular(path, status)
    if path.name.endswith(_INDEX):
        return _indexed(path.parent, path.name)
    if path.suffix == _GGUF:
        return _gguf(path, path)
    if path.suffix == _ONNX:
        return _onnx(path, path)
    if path.suffix == _SAFETENSORS:
        return _single(path, whole=whole)
    if path.suffix in _PICKLES:
        raise UnreadableInput(f"{path}: {_no_pickle()}")
    raise UnreadableInput(f"{path}: not a kind of checkpoint that qconv reads; {_ACCEPTED}")


def _in_directory(directory: Path) -> Source:
    present = names(directory)
    indices = [name for name in present if name.endswith(_INDEX)]
    weights = [name for name in present if name.endswith(_SAFETENSORS)]
    ggufs = [name for name in present if name.endswith(_GGUF)]
    if ggufs and (weights or indices):
        raise _ambiguous(directory, ggufs + weights + indices)
    if ggufs:
        name = _one_gguf(directory, ggufs)
        return _gguf(directory / name, member(directory, name))
    if "model.safetensors" in weights and "model" + _INDEX in indices:
        raise _ambiguous(directory, ["model.safetensors", "model" + _INDEX])
    if indices:
        return _indexed(directory, _choose(directory, indices, "model" + _INDEX))
    if not weights:
        graphs = [name for name in present if name.endswith(_ONNX)]
        if graphs:
            chosen = _choose(directory, graphs, "model" + _ONNX)
            return _onnx(directory / chosen, member(directory, chosen))
        raise UnreadableInput(f"{directory}: {_nothing_there(present)}")
    chosen = _whole_file(directory, weights)
    return Source(
        kind="safetensors",
        name=_directory_name(directory),
        directory=directory,
        weights=(member(directory, chosen),),
        warnings=_left_out(directory, weights, {chosen}),
    )


def _whole_file(directory: Path, weights: list[str]) -> str:
    shards = [name for name in weights if _is_shard(name)]
    if shards == weights:
        raise UnreadableInput(
            f"{directory}: holds shards ({_listed(shards)}) but no {_INDEX} that names them all; "
            "get the index from the model's publisher"
        )
    return _choose(directory, weights, "model.safetensors")


def _is_shard(name: str) -> bool:
    shard = _SHARD.fullmatch(Path(name).stem)
    return shard is not None and int(shard["count"]) > 1


def _indexed(directory: Path, name: str) -> Source:
    index = read_index(member(directory, name))
    shards = sorted(set(index.values()))
    present = [name for name in names(directory) if name.endswith(_SAFETENSORS)]
    return Source(
        kind="safetensors",
        name=_directory_name(directory),
        directory=directory,
        weights=tuple(member(directory, shard) for shard in shards),
        index=index,
        warnings=_left_out(directory, present, set(shards)),
    )


def _single(path: Path, *, whole: bool) -> Source:
    if whole and _is_shard(path.name):
        raise UnreadableInput(
            f"{path}: is one shard of several; pass the directory {path.parent} or its {_INDEX}"
        )
    return Source(
        kind="safetensors",
        name=path.stem,
        directory=path.parent,
        weights=(path,),
    )


def _gguf(path: Path, first: Path) -> Source:
    # A file that the user names may be a link to anywhere; what is found beside it may not.
    shard = _SHARD.fullmatch(path.stem)
    if shard is None:
        return Source(kind="gguf", name=path.stem, directory=None, weights=(first,))
    stem, count = shard["stem"], shard["count"]
    shards = [f"{stem}-{number:05d}-of-{count}{_GGUF}" for number in range(1, int(count) + 1)]
    if path.name not in shards:
        raise UnreadableInput(f"{path}: shard numbers go from 1 to {int(count)}; check the name")
    if path.name != shards[0]:
        raise UnreadableInput(
            f"{path}: is shard {int(shard['number'])} of {int(count)}; "
            f"pass the first one, {path.with_name(shards[0])}"
        )
    weights = (first, *(member(path.parent, name) for name in shards[1:]))
    return Source(kind="gguf", name=stem, directory=None, weights=weights)


def _onnx(path: Path, file: Path) -> Source:
    """A graph; the file that most exporters call ``model.onnx`` is named after its directory."""
    directory = path.parent
    name = _directory_name(directory) if path.stem == "model" else path.stem
    return Source(kind="onnx", name=name, directory=directory, weights=(file,))


def _one_gguf(directory: Path, found: list[str]) -> str:
    if len(found) == 1:
        return found[0]
    shards = [_SHARD.fullmatch(name[: -len(_GGUF)]) for name in found]
    sets = {(shard["stem"], shard["count"]) if shard else None for shard in shards}
    if len(sets) > 1 or None in sets:
        raise _ambiguous(directory, found)
    return found[0]


def _choose(directory: Path, found: list[str], usual: str) -> str:
    if usual in found:
        return usual
    if len(found) > 1:
        raise _ambiguous(directory, found)
    return found[0]


def _left_out(directory: Path, present: list[str], used: set[str]) -> tuple[str, ...]:
    others = [name for name in present if name not in used]
    if not others:
        return ()
    return (f"{directory}: not read, as the model does not name them: {_listed(others)}",)


def _directory_name(directory: Path) -> str:
    home = directory.resolve()
    # A Hugging Face cache: models--publisher--name/snapshots/<revision>
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        return home.parent.parent.name.rsplit("--", 1)[1]
    return home.name or "model"


def _nothing_there(found: list[str]) -> str:
    pickles = [name for name in found if Path(name).suffix in _PICKLES]
    if pickles:
        return f"holds only {_listed(pickles)}: {_no_pickle()}"
    return f"holds no .safetensors, no .gguf and no .onnx file; {_ACCEPTED}"


def _no_pickle() -> str:
    return (
        "pickle files can run code and are not read; convert the model to safetensors, for "
        "example with transformers: save_pretrained(..., safe_serialization=True)"
    )


def _ambiguous(directory: Path, found: list[str]) -> UnreadableInput:
    return UnreadableInput(
        f"{directory}: holds more than one model: {_listed(found)}; pass the path of one of them"
    )


def _listed(found: list[str]) -> str:
    listed = ", ".join(shown(name) for name in found[:8])
    return listed if len(found) <= 8 else f"{listed} and {len(found) - 8} more"
