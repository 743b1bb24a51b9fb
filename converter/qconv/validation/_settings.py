"""What an artifact says of the model beside its weights: config.json, and metadata of a GGUF.

Every value that the backend plans for the source must be there. What else is there is left alone,
as runtimes that save a model anew add to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qconv.checkpoint import open_checkpoint
from qconv.errors import QconvError

if TYPE_CHECKING:
    from pathlib import Path

    from qconv.validation._planned import Companions

_FILES = ("config.json", "generation_config.json")

#: Says how weights are stored, which reading them proves; who wrote the file.
_ASIDE = frozenset({"quantization_config", "transformers_version", "_name_or_path"})

#: Names and file types for people, which no runtime computes with; but this one.
_FOR_PEOPLE = "general."
_ARCHITECTURE = "general.architecture"

#: Told where the tokenizer is compared.
_OF_TOKENIZER = frozenset(
    {"tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.chat_template"}
    | {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"}
)

#: Floats that differ by less went through another type: metadata has them in 32 bits.
_NEAR = 1e-6

_MISSING = object()


def settings_faults(path: Path, planned: Companions) -> Iterator[str]:
    """Values that are not as planned; each sentence names the file and the key."""
    if path.is_dir():
        for name in _FILES:
            if name in planned.files:
                yield from _of_file(path / name, planned.files[name])
    elif planned.metadata is not None:
        expected = {key: each.value for key, each in planned.metadata.items()}
        yield from _of_gguf(path, expected)


def _of_file(path: Path, planned: bytes) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name} is missing"
        return
    data = path.read_bytes()
    if data == planned:
        return
    found, expected = _object(data), _object(planned)
    if found is None:
        yield f"{path.name}: is no JSON object"
    elif expected is not None:
        given = {key: value for key, value in expected.items() if key not in _ASIDE}
        yield from _differing(path.name, found, given)


def _of_gguf(path: Path, planned: Mapping[str, Any]) -> Iterator[str]:
    try:
        with open_checkpoint(path, require_config=False) as opened:
            stored = dict(opened.model.metadata)
    except QconvError:
        return  # told where the tensors are read
    found = {key: each.value for key, each in stored.items()}
    given = {
        key: value
        for key, value in planned.items()
        if key not in _OF_TOKENIZER and (key == _ARCHITECTURE or not key.startswith(_FOR_PEOPLE))
    }
    yield from _differing("metadata", found, given)


def _differing(where: str, found: Mapping[str, Any], planned: Mapping[str, Any]) -> Iterator[str]:
    for key, value in planned.items():
        mine = found.get(key, _MISSING)
        if mine is _MISSING:
            yield f"{where}: {key!r} is missing, but must be {_shown(value)}"
        elif isinstance(mine, Mapping) and isinstance(value, Mapping):
            yield from _differing(f"{where}: {key}", mine, value)
        elif not _same(mine, value):
            yield f"{where}: {key!r} is {_difference(mine, value)}"


def _difference(mine: object, planned: object) -> str:
    """Of lists of a length, the first entry that differs."""
    if isinstance(mine, (list, tuple)) and isinstance(planned, (list, tuple)):
        if len(mine) != len(planned):
            return f"a list of {len(mine)}, but must be one of {len(planned)}"
        pairs = enumerate(zip(mine, planned, strict=True))
        at, (one, other) = next(each for each in pairs if not _same(*each[1]))
        return f"{_shown(one)} at {at}, but must be {_shown(other)}"
    return f"{_shown(mine)}, but must be {_shown(planned)}"


def _same(mine: object, planned: object) -> bool:
    if isinstance(mine, (list, tuple)) and isinstance(planned, (list, tuple)):
        return len(mine) == len(planned) and all(map(_same, mine, planned))
    if isinstance(mine, bool) or isinstance(planned, bool):
        return mine is planned
    if isinstance(mine, (int, float)) and isinstance(planned, (int, float)):
        return mine == planned or math.isclose(mine, planned, rel_tol=_NEAR)
    return mine == planned


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
