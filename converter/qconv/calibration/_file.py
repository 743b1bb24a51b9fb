"""The calibration file: windows and statistics as plain safetensors, read one input at a time.

``windows`` holds the tokens of all windows one after the other, ``lengths`` how many each has.
The statistics of input ``i`` are ``i:square_sum``, ``i:abs_sum``, ``i:low``, ``i:high``,
``i:sample``, ``i:priority``, and, of the symmetric Gram sum, the rows of its upper triangle,
``i:gram``. The metadata entry ``qconv.calibration`` is JSON, a :class:`CalibrationMetadata`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qconv.calibration._identity import tensors_digest, tokenizer_digest
from qconv.calibration._running import InputStatistics, Seen, check_tokens
from qconv.calibration._tokenizer import vocabulary_size
from qconv.calibration._windows import Origin, SourceReport, Windows, measured
from qconv.calibration._writer import TensorWriter
from qconv.errors import UnreadableInput, UsageError
from qconv.statistics import SAMPLE_ROWS, Statistics

if TYPE_CHECKING:
    import torch
    from safetensors import safe_open

    from qconv.calibration._settings import Calibration
    from qconv.plugin import ModelInfo

METADATA_KEY = "qconv.calibration"
#: How a calibration file's name ends.
FILE_SUFFIX = ".safetensors"

Kind = Literal["full", "diagonal", "none"]

_Count = Annotated[int, Field(ge=0, le=2**48)]
_Size = Annotated[int, Field(ge=1, le=2**31)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
#: Of the form of the metadata.
_VERSION: Final = 2

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelEntry(BaseModel):
    """The model a calibration file was made for."""

    model_config = _STRICT

    name: str = Field(description="Short name, for people.")
    tokenizer: _Sha256 = Field(description="Of the files that map text to token ids.")
    tensors: _Sha256 = Field(description="Of the names and shapes of all tensors.")
    vocabulary: _Size | None = Field(description="Tokens the model knows.")


class OptionsEntry(BaseModel):
    """The settings that windows were made with."""

    model_config = _STRICT

    sources: dict[str, float] = Field(description="Share of the windows by source.")
    windows: _Size | None = Field(description="Windows asked for; null: all the text gives.")
    window_length: _Size
    sampling: str
    packing: bool
    seed: _Count
    chat_template: bool


class InputEntry(BaseModel):
    """The statistics of one distinct linear input."""

    model_config = _STRICT

    linears: Annotated[list[str], Field(min_length=1)] = Field(
        description="Source tensors that are multiplied with this input."
    )
    tokens: _Count = Field(description="Rows seen.")
    features: _Size = Field(description="Columns.")
    gram: bool = Field(description="The whole Gram sum is stored, not only its diagonal.")
    sample: Annotated[int, Field(ge=0, le=SAMPLE_ROWS)] = Field(description="Rows kept as is.")


class CalibrationMetadata(BaseModel):
    """Metadata entry ``qconv.calibration`` of a calibration file."""

    model_config = _STRICT

    version: Literal[2] = Field(description="Version of this form.")
    model: ModelEntry
    digest: _Sha256 = Field(description="Of the token ids of all windows.")
    first_token: _Count = Field(description="Tokens before these windows in a larger set.")
    origins: list[Origin] = Field(description="Where each window came from.")
    sources: list[SourceReport] = Field(description="What each source gave.")
    options: list[OptionsEntry] = Field(description="One for each file that was added up.")
    statistics: Kind
    dtype: str = Field(description="Of the arithmetic of the forward pass; empty without one.")
    inputs: list[InputEntry]


class CalibrationFile:
    """A calibration file, checked when it is opened; statistics are read when asked for.

    Peak memory: the windows, and the statistics in hand.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _open(path) as file:
            self.metadata = _parsed(path, file.metadata())
            self._check_tensors(file)
            self._windows = self._read_windows(file)
        self._place = {
            name: index
            for index, entry in enumerate(self.metadata.inputs)
            for name in entry.linears
        }

    @property
    def windows(self) -> Windows:
        """The windows it was made with."""
        return self._windows

    @property
    def linears(self) -> tuple[str, ...]:
        """Source names of the linear weights whose inputs it has statistics of, sorted."""
        return tuple(sorted(self._place))

    @property
    def seen(self) -> tuple[Seen, ...]:
        """How many tokens each distinct input saw."""
        return tuple(_seen(entry) for entry in self.metadata.inputs)

    def statistics(self, name: str) -> Statistics:
        """The statistics of the input of a linear weight, on the CPU.

        Raises:
            UsageError: the file has none of it.
            UnreadableInput: what is stored is not finite, or cannot be read.
        """
        index = self._place.get(name)
        if index is None:
            raise UsageError(
                f"{self.path}: no statistics of {name!r} (it has those of {len(self._place)} "
                "linear weights); calibrate again with --statistics full"
            )
        return self._read(index)

    def inputs(self) -> Iterator[InputStatistics]:
        """All distinct inputs, one at a time."""
        for index, entry in enumerate(self.metadata.inputs):
            yield InputStatistics(linears=tuple(entry.linears), statistics=self._read(index))

    def check_model(self, model: ModelInfo) -> None:
        """Refuse a model the file was not made for.

        Raises:
            UsageError: the tokenizer, the vocabulary or the tensors differ; the latter only where
                there are statistics.
        """
        made = self.metadata.model
        differs = None
        if made.tokenizer != tokenizer_digest(model) or made.vocabulary != vocabulary_size(model):
            differs = "tokenizer"
        elif self.metadata.inputs and made.tensors != tensors_digest(model):
            differs = "tensors"
        if differs:
            raise UsageError(
                f"{self.path} was made for a model whose {differs} differ from those of "
                f"{model.name} (it was {made.name!r}); calibrate this model: qconv calibrate"
            )

    def _check_tensors(self, file: Any) -> None:  # noqa: ANN401 - safe_open has no types
        stored = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
        expected = dict(_layout(self.metadata))
        if odd := sorted(expected.keys() ^ stored.keys()):
            state = "is not there" if odd[0] in expected else "belongs to nothing"
            raise _damaged(self.path, f"stored tensor {odd[0]!r} {state}")
        for key, (shape, dtype) in expected.items():
            found = tuple(stored[key].get_shape()), stored[key].get_dtype()
            wanted = found[0] if shape is None else shape
            if found != (wanted, dtype):
                raise _damaged(
                    self.path, f"stored tensor {key!r} is {found}, not {(wanted, dtype)}"
                )

    def _read_windows(self, file: Any) -> Windows:  # noqa: ANN401
        flat, lengths = file.get_tensor("windows").long(), file.get_tensor("lengths").tolist()
        bad = len(lengths) != len(self.metadata.origins) or min(lengths, default=1) < 1
        if bad or sum(lengths) != flat.numel() or flat.dim() != 1:
            raise _damaged(self.path, "lengths and windows do not belong together")
        vocabulary = self.metadata.model.vocabulary
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < (vocabulary or 2**31):
            raise _damaged(self.path, "a token id is not in the vocabulary")
        tokens = tuple(flat.split(lengths)) if lengths else ()
        windows = Windows(
            tokens=tokens,
            origins=tuple(self.metadata.origins),
            report=measured(tokens, self.metadata.sources, vocabulary),
            first_token=self.metadata.first_token,
        )
        if windows.digest != self.metadata.digest:
            raise _damaged(self.path, "the windows are not those of its digest")
        return windows

    def _read(self, index: int) -> Statistics:
        import torch
        from safetensors import SafetensorError

        entry = self.metadata.inputs[index]
        names = [*_PARTS, *(["gram"] if entry.gram else [])]
        with _open(self.path) as file:
            try:
                parts = {part: file.get_tensor(f"{index}:{part}") for part in names}
            except (SafetensorError, OSError) as error:
                raise _damaged(self.path, f"statistics can no longer be read: {error}") from error
        for part, value in parts.items():
            sound = bool(torch.isfinite(value).all())
            if part in _SIGNS:
                sound = sound and bool((value * _SIGNS[part] >= 0).all())
            if not sound:
                raise _damaged(self.path, f"{part} of {entry.linears[0]!r} is not sound")
        upper = parts.pop("gram", None)
        gram = None if upper is None else _mirrored(upper, entry.features)
        return Statistics(tokens=entry.tokens, gram_sum=gram, **parts)


#: Tensors of an input: shape with the names of its sizes, and the type as safetensors calls it.
_PARTS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "square_sum": (("features",), "F64"),
    "abs_sum": (("features",), "F64"),
    "low": (("features",), "F32"),
    "high": (("features",), "F32"),
    "sample": (("sample", "features"), "F32"),
    "priority": (("sample",), "I64"),
}
#: Parts that have one sign, zero aside.
_SIGNS = {"square_sum": 1, "abs_sum": 1, "low": -1, "high": 1, "priority": 1}


def _layout(
    metadata: CalibrationMetadata,
) -> Iterator[tuple[str, tuple[tuple[int, ...] | None, str]]]:
    """Shape and type of every tensor that must be there; None is any shape."""
    yield "windows", (None, "I32")
    yield "lengths", ((len(metadata.origins),), "I64")
    for index, entry in enumerate(metadata.inputs):
        for part, (sizes, dtype) in _PARTS.items():
            yield f"{index}:{part}", (tuple(getattr(entry, size) for size in sizes), dtype)
        if entry.gram:
            yield f"{index}:gram", ((entry.features * (entry.features + 1) // 2,), "F32")


def load_calibration(path: str | Path, model: ModelInfo | None = None) -> CalibrationFile:
    """Open a calibration file; where ``model`` is given, one that was made for it.

    Raises:
        UnreadableInput: missing, damaged, or no calibration file.
        UsageError: made for another model.
    """
    file = CalibrationFile(Path(path))
    if model is not None:
        file.check_model(model)
    return file


def save_calibration(
    path: str | Path,
    windows: Windows,
    model: ModelInfo,
    *,
    options: Iterable[Calibration | OptionsEntry],
    inputs: Iterable[InputStatistics] = (),
    kind: Kind = "none",
    dtype: str = "",
    least: int | None = None,
) -> None:
    """Write windows and statistics, whole or not at all; equal content gives equal bytes.

    Peak memory: the windows and one of ``inputs``, which are taken and written one by one. Disk:
    twice the file while it is finished.

    inputs: statistics of every distinct linear input
    least: tokens that every one of them must have seen

    Raises:
        GateFailed: one has seen fewer tokens than ``least``.
        NotEnoughResources: the disk is full.
    """
    import torch

    with TensorWriter(Path(path)) as writer:
        flat = torch.cat(list(windows.tokens)) if windows.tokens else torch.zeros(0)
        writer.add("windows", flat.int())
        lengths = [len(window) for window in windows.tokens]
        writer.add("lengths", torch.tensor(lengths, dtype=torch.int64))
        entries = [_write_input(writer, index, each) for index, each in enumerate(inputs)]
        check_tokens([_seen(entry) for entry in entries], least)
        metadata = CalibrationMetadata(
            version=_VERSION,
            model=_model_entry(model),
            digest=windows.digest,
            first_token=windows.first_token,
            origins=list(windows.origins),
            sources=list(windows.report.sources),
            options=[_options_entry(each) for each in options],
            statistics=kind,
            dtype=dtype,
            inputs=entries,
        )
        text = json.dumps(metadata.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        writer.finish({METADATA_KEY: text})


def _write_input(writer: TensorWriter, index: int, given: InputStatistics) -> InputEntry:
    statistics = given.statistics
    tensors = statistics.tensors()
    gram = tensors.pop("gram_sum", None)
    for part, value in sorted(tensors.items()):
        writer.add(f"{index}:{part}", value)
    if gram is not None:
        rows = [gram[row, row:] for row in range(len(gram))]
        writer.add_pieces(f"{index}:gram", rows)
    return InputEntry(
        linears=sorted(given.linears),
        tokens=statistics.tokens,
        features=statistics.features,
        gram=gram is not None,
        sample=len(statistics.sample),
    )


def _seen(entry: InputEntry) -> Seen:
    return Seen(
        linears=tuple(entry.linears),
        tokens=entry.tokens,
        features=entry.features,
        gram=entry.gram,
    )


def _mirrored(upper: torch.Tensor, features: int) -> torch.Tensor:
    """The symmetric matrix whose upper triangle has these values, row by row."""
    import torch

    gram = torch.empty(features, features)
    start = 0
    for row in range(features):
        values = upper[start : start + features - row]
        gram[row, row:] = values
        gram[row:, row] = values
        start += features - row
    return gram


def _model_entry(model: ModelInfo) -> ModelEntry:
    return ModelEntry(
        name=model.name,
        tokenizer=tokenizer_digest(model),
        tensors=tensors_digest(model),
        vocabulary=vocabulary_size(model),
    )


def _options_entry(given: Calibration | OptionsEntry) -> OptionsEntry:
    if isinstance(given, OptionsEntry):
        return given
    return OptionsEntry(
        sources={source.label: source.share for source in given.sources},
        windows=given.windows,
        window_length=given.window_length,
        sampling=given.sampling,
        packing=given.packing,
        seed=given.seed,
        chat_template=given.chat_template,
    )


def _open(path: Path) -> safe_open:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UnreadableInput(
            f"{path}: cannot be read as safetensors: {error}; pass a file that qconv calibrate "
            "wrote"
        ) from error


def _parsed(path: Path, metadata: Mapping[str, str] | None) -> CalibrationMetadata:
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        raise UnreadableInput(
            f"{path}: no metadata entry {METADATA_KEY!r}, so it is no calibration file; pass one "
            "that qconv calibrate wrote"
        )
    try:
        return CalibrationMetadata.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["loc"] == ("version",) and type(first["input"]) is int:
            raise UnreadableInput(_other_version(path, first["input"])) from error
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise _damaged(path, f"metadata, {where}: {first['msg']}") from error


def _other_version(path: Path, version: int) -> str:
    older = version < _VERSION
    then = "calibrate again: qconv calibrate" if older else "upgrade it: pip install -U qconv"
    return (
        f"{path}: written by {'an older' if older else 'a newer'} qconv (version {version} of the "
        f"form, where this one reads {_VERSION}); {then}"
    )


def _damaged(path: Path, what: str) -> UnreadableInput:
    return UnreadableInput(f"{path}: {what}; write the file again with qconv calibrate")
