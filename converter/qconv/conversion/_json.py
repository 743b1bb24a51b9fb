"""What ``Conversion.to_json`` gives, typed; ``schemas/conversion.schema.json`` comes from it."""

from __future__ import annotations

from typing import Literal, Optional

from typing_extensions import TypedDict


class WrittenJson(TypedDict):
    """A finished file. sha256: hex digest of its bytes."""

    path: str
    sha256: str


class ArtifactJson(TypedDict):
    """A finished artifact. Shares are of values, 0 to 1; types largest first."""

    target: str
    files: list[WrittenJson]
    nbytes: int
    weights: int
    bits_per_weight: float
    fallback_share: float
    type_shares: dict[str, float]


class TranscodedJson(ArtifactJson):
    """A finished artifact of a transcoding.

    tensors_compared: decoded from the artifact and from the source, and found equal
    tensors_recoded: of them, those that are on another grid than in the source
    """

    tensors_compared: int
    tensors_recoded: int
    all_equal: Literal[True]


class CalibratedJson(TypedDict):
    """What statistics were taken from.

    digest: SHA-256 of the windows' token ids
    device, dtype: what the model was run on and in; null where it was not run
    least_tokens: of all linear weights, the fewest tokens that came through one; null when no
        statistics were taken, as all was there already
    """

    windows: int
    tokens: int
    digest: str
    device: Optional[str]  # noqa: UP045 - read at run time, on Python 3.10 too
    dtype: Optional[str]  # noqa: UP045 - read at run time, on Python 3.10 too
    least_tokens: Optional[int]  # noqa: UP045 - read at run time, on Python 3.10 too


class CheckedJson(TypedDict):
    """What was looked at of an artifact before it got its name, and found in order.

    tensors: accounted for; tensors_decoded: of them, those compared with what was encoded
    share_decoded: of the values, 0 to 1
    kinds_not_decoded: names of tensors of which none was compared, with ``*`` for numbers
    warnings: what is no proof that the artifact is wrong, but should be looked at
    reason: why nothing was looked at
    """

    target: str
    tensors: int
    tensors_decoded: int
    share_decoded: float
    kinds_not_decoded: list[str]
    warnings: list[str]
    reason: Optional[str]  # noqa: UP045 - read at run time, on Python 3.10 too


class ConversionJson(TypedDict):
    """A finished conversion. seconds: wall time of the work, without planning."""

    source: str
    method: str
    calibration: Optional[CalibratedJson]  # noqa: UP045 - read at run time, on Python 3.10 too
    seconds: float
    warnings: list[str]
    artifacts: list[ArtifactJson]
    checked: list[CheckedJson]


class TranscodingJson(TypedDict):
    """A finished transcoding. family: of the source; seconds: of the work, without planning."""

    source: str
    family: str
    seconds: float
    warnings: list[str]
    artifacts: list[TranscodedJson]
