"""What ``Plan.to_json`` gives, typed; ``schemas/plan.schema.json`` is generated from it."""

from __future__ import annotations

from typing import Literal, Optional

from typing_extensions import TypedDict


class SourceJson(TypedDict):
    """The checkpoint. weights: values in all tensors; nbytes: bytes of their data on disk.

    quantized: what kind of quantized checkpoint it is; null for a plain one
    """

    path: str
    kind: Literal["safetensors", "gguf", "onnx"]
    name: str
    tensors: int
    weights: int
    nbytes: int
    quantized: Optional[str]  # noqa: UP045 - read at run time, on Python 3.10 too


class NeedsJson(TypedDict):
    """What the conversion needs of the machine."""

    disk_nbytes: int
    ram_nbytes: int
    threads: int


class FileJson(TypedDict):
    """A file to be written, its path below the output directory and its exact size."""

    path: str
    nbytes: int


class TensorJson(TypedDict):
    """The fate of one tensor.

    name: in the artifact; null for a dropped source tensor
    type: storage type in the artifact, e.g. ``Q4_K``; null for a dropped one
    fallback_from: the type the format asks for, had the shape allowed it
    row_order: how the rows are rearranged, for people
    """

    name: str | None
    sources: list[str]
    shape: list[int]
    action: Literal["quantize", "copy", "cast", "fuse", "generate", "drop"]
    type: str | None
    reason: str
    fallback_from: str | None
    row_order: str | None
    nbytes: int


class TargetJson(TypedDict):
    """Everything one target will write. Shares are of values, 0 to 1; types largest first."""

    target: str
    options: dict[str, str]
    files: list[FileJson]
    nbytes: int
    weights: int
    bits_per_weight: float
    fallback_share: float
    type_shares: dict[str, float]
    tensors: list[TensorJson]


class CalibrationPlanJson(TypedDict):
    """The forward passes that statistics are taken from. nbytes: memory they add, at most."""

    source: str
    windows: int
    window_length: int
    statistics: Literal["shared", "sequential"]
    device: str
    dtype: str
    nbytes: int


class PlanJson(TypedDict):
    """A whole plan. calibration: null where the method needs no forward pass."""

    source: SourceJson
    method: str
    calibration: Optional[CalibrationPlanJson]  # noqa: UP045 - read at run time, on Python 3.10 too
    out: str
    needs: NeedsJson
    plugins: list[str]
    warnings: list[str]
    targets: list[TargetJson]
