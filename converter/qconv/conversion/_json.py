"""What ``Conversion.to_json`` gives, typed; ``schemas/conversion.schema.json`` comes from it."""

from __future__ import annotations

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


class ConversionJson(TypedDict):
    """A finished conversion. seconds: wall time of the work, without planning."""

    source: str
    method: str
    seconds: float
    warnings: list[str]
    artifacts: list[ArtifactJson]
