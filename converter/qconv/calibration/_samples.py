"""Inputs that a graph is run on: arrays of an ``.npz`` file, or windows of text for token ids."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.calibration._build import build_windows
from qconv.calibration._settings import SELF
from qconv.errors import UnreadableInput, Unsupported, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qconv.calibration._settings import Calibration
    from qconv.checkpoint import Checkpoint
    from qconv.plugin import SampleInput

    Arrays = Mapping[str, np.ndarray[Any, Any]]

_SUFFIX = ".npz"

#: What text can be made into; keys and values of earlier tokens are none.
_OF_TEXT = frozenset({"input_ids", "attention_mask", "position_ids", "token_type_ids"})
_PAST = "past_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What a graph is run on.

    feeds: the inputs of each run, by name
    tokens: 1-D int64 of each run: its token ids, or its number where it has none
    digest: of all of it
    """

    feeds: Sequence[Arrays] = field(repr=False)
    tokens: Sequence[torch.Tensor]
    digest: str
    warnings: tuple[str, ...] = ()


def graph_samples(
    settings: Calibration, checkpoint: Checkpoint, inputs: Mapping[str, SampleInput]
) -> Samples:
    """The samples that the settings ask for.

    inputs: of the graph

    Raises:
        UsageError: text is given, but the graph takes other inputs than token ids; or arrays that
            are not those of the inputs.
        UnreadableInput: the file cannot be read.
    """
    (first, *others) = settings.sources
    if first.name.endswith(_SUFFIX):
        if others:
            raise UsageError(f"{first.name}: inputs are taken from one .npz file alone")
        return _of_file(Path(first.name), settings.windows, inputs)
    return _of_text(settings, checkpoint, inputs)


def _of_text(
    settings: Calibration, checkpoint: Checkpoint, inputs: Mapping[str, SampleInput]
) -> Samples:
    if settings.sampling == "perplexity" or any(each.name == SELF for each in settings.sources):
        raise Unsupported(
            f"{checkpoint.model.name}: text that the model writes or chooses itself needs it in "
            "transformers; give text of another source, or samples in an .npz file"
        )
    past = [name for name in inputs if name.startswith(_PAST)]
    foreign = sorted(inputs.keys() - _OF_TEXT - set(past))
    if foreign or "input_ids" not in inputs:
        raise UsageError(
            f"{checkpoint.model.name}: the graph takes {', '.join(sorted(inputs))}, which text is "
            "not made into; give --calibration FILE.npz with an array of samples for each"
        )
    windows = build_windows(settings, checkpoint)
    return Samples(
        feeds=[_made_of(each.numpy()[None], inputs) for each in windows.tokens],
        tokens=windows.tokens,
        digest=windows.digest,
        warnings=windows.report.warnings,
    )


def _made_of(ids: np.ndarray[Any, Any], inputs: Mapping[str, SampleInput]) -> Arrays:
    """What language models take, of one text that is whole and follows no other: (1, tokens)."""
    import numpy as np

    made = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
        "token_type_ids": np.zeros_like(ids),
    }
    for name, wanted in inputs.items():
        if name.startswith(_PAST):
            made[name] = np.zeros((1, *(size or 0 for size in wanted.shape[1:])))
    return {name: made[name].astype(wanted.dtype) for name, wanted in inputs.items()}


def _of_file(path: Path, count: int | None, inputs: Mapping[str, SampleInput]) -> Samples:
    arrays = _read(path, inputs)
    batches = {wanted.shape[0] or 1 for wanted in inputs.values() if wanted.shape}
    batch = max(batches, default=1)
    sizes = {name: len(value) for name, value in arrays.items()}
    if len(set(sizes.values())) != 1 or min(sizes.values()) < batch:
        raise UsageError(
            f"{path}: arrays must hold equally many samples, {batch} or more, along their first "
            f"dimension, not {sizes}"
        )
    found = min(sizes.values()) // batch
    used = found if count is None else min(count, found)
    feeds = [
        {name: value[start : start + batch] for name, value in arrays.items()}
        for start in range(0, used * batch, batch)
    ]
    return Samples(feeds=feeds, tokens=_tokens(feeds), digest=_digest(arrays))


def _read(path: Path, inputs: Mapping[str, SampleInput]) -> dict[str, np.ndarray[Any, Any]]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            missing = sorted(inputs.keys() - set(file.files))
            if missing:
                raise UsageError(
                    f"{path}: has no array {missing[0]!r}; the graph takes "
                    f"{', '.join(sorted(inputs))}"
                )
            return {name: _checked(path, name, file[name], inputs[name]) for name in sorted(inputs)}
    except OSError as error:
        raise UnreadableInput(f"{path}: cannot be read: {error}; check the path") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UnreadableInput(
            f"{path}: holds no arrays of numbers; write them with numpy.savez(path, name=array)"
        ) from error


def _checked(
    path: Path, name: str, value: np.ndarray[Any, Any], wanted: SampleInput
) -> np.ndarray[Any, Any]:
    import numpy as np

    fits = len(value.shape) == len(wanted.shape) and all(
        size in {None, held} for size, held in zip(wanted.shape[1:], value.shape[1:], strict=True)
    )
    if not fits:
        raise UsageError(
            f"{path}: array {name!r} has shape {value.shape}, but the graph takes "
            f"{tuple('any' if size is None else size for size in wanted.shape)}"
        )
    if not np.can_cast(value.dtype, wanted.dtype, casting="same_kind"):
        raise UsageError(
            f"{path}: array {name!r} is {value.dtype}, but the graph takes {wanted.dtype}"
        )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise UsageError(f"{path}: array {name!r} holds NaN or infinite values; leave them out")
    return value.astype(wanted.dtype, copy=False)


def _tokens(feeds: Sequence[Arrays]) -> list[torch.Tensor]:
    import torch

    return [
        torch.from_numpy(each["input_ids"].reshape(-1).astype("int64"))
        if "input_ids" in each
        else torch.tensor([number])
        for number, each in enumerate(feeds)
    ]


def _digest(arrays: Arrays) -> str:
    sha256 = hashlib.sha256()
    for name, value in arrays.items():
        sha256.update(repr((name, value.shape, str(value.dtype))).encode())
        sha256.update(value.tobytes())
    return sha256.hexdigest()
