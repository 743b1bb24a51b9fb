"""What ``Calibrated.to_json`` gives, typed; ``schemas/calibration.schema.json`` comes from it."""

from __future__ import annotations

from typing_extensions import TypedDict


class CorpusCountsJson(TypedDict):
    """What became of the records of a source."""

    records: int
    without_text: int
    duplicates: int
    near_duplicates: int
    unused: int
    documents: int
    conversations: int
    characters: int
    urls_shortened: int
    control_characters: int


class CalibrationSourceJson(TypedDict):
    """What one source gave. counts: null for text that was not read. share: 0 to 1, as asked."""

    source: str
    share: float
    counts: CorpusCountsJson | None
    templates_failed: int
    overlapping: int
    candidates: int
    windows: int


class LengthsJson(TypedDict):
    """Tokens of a window."""

    shortest: int
    median: int
    longest: int


class InputJson(TypedDict):
    """A distinct linear input. tokens: rows seen; features: columns."""

    linears: list[str]
    tokens: int
    features: int


class CalibrationJson(TypedDict):
    """A calibration file that was written.

    digest: SHA-256, as hex, of the token ids of all windows. vocabulary: null when the model does
    not say. statistics: full, diagonal or none. seconds: wall time.
    """

    path: str
    nbytes: int
    digest: str
    windows: int
    tokens: int
    lengths: LengthsJson
    distinct_tokens: int
    vocabulary: int | None
    sources: list[CalibrationSourceJson]
    statistics: str
    inputs: list[InputJson]
    warnings: list[str]
    seconds: float
