"""What a validation found: frozen records, from one tensor up to all artifacts.

Errors, shares and probabilities are plain numbers (0.05, never 5 %), divergences are in nats, sizes
in bytes, times in seconds. None where nothing was measured, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping  # at run time: schemas are made from the records
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from qconv.memory import VramResult  # noqa: TC001 - at run time, as the imports above

#: ``warn``: usable, but look at it. ``unmeasured`` never counts as ``pass``.
Status = Literal["pass", "warn", "fail", "unmeasured"]

_WORST_FIRST: tuple[Status, ...] = ("fail", "unmeasured", "warn", "pass")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorResult:
    """One tensor of the artifact, decoded, beside the source's.

    shape: in the artifact, outermost first
    grid: how it is stored: ``Q4_K``, ``F32``, ``int4 g128``
    bits_per_weight: as stored, with its parameters
    relative_error: ``||decoded - source|| / ||source||``; None where it was not compared
    cosine: between decoded and source; None where it was not compared
    limit: what ``relative_error`` may be on this grid; None where it has no limit
    rescaled: it is the source's with channels rescaled, as AWQ and SmoothQuant do, and compared so
    faults: what is wrong with it, in words; empty when nothing is
    warnings: what is odd, and may be the method's choice
    """

    name: str
    shape: tuple[int, ...]
    grid: str
    bits_per_weight: float
    relative_error: float | None = None
    cosine: float | None = None
    limit: float | None = None
    rescaled: bool = False
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockResult:
    """A block's output: ``||artifact - source|| / ||source||``, over all tokens of all windows.

    relative_error: each model follows its own states, so errors of earlier blocks are in it
    """

    name: str
    relative_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a figure is spread over token positions."""

    mean: float
    median: float
    p90: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsResult:
    """Predictions beside those of the source, over held-out windows.

    scored: what made the logits: ``decoded weights``, ``llama.cpp 0.3.36``
    tokens: positions compared
    kl: KL(source || scored) over the whole vocabulary, in nats
    same_top1: share of positions with the same likeliest token
    top5_overlap: mean share of the source's five likeliest that are among the scored's
    perplexity: over positions with a next token
    perplexity_ratio: scored / source
    ratio_interval: 95 % confidence, over windows
    rms_probability: root mean square of the change of the true token's probability
    window_kl: mean of each window, so that artifacts can be compared pair by pair
    """

    scored: str
    windows: int
    tokens: int
    kl: Spread
    same_top1: float
    top5_overlap: float
    perplexity: float
    reference_perplexity: float
    perplexity_ratio: float
    ratio_interval: tuple[float, float]
    rms_probability: float
    window_kl: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeResult:
    """What the real engine makes of the artifact.

    device: where it computed: ``cpu``, ``cuda:0``; None when unmeasured
    logits: against the source; None when unmeasured
    against_decoded: against the artifact's own decoded weights: what the engine itself adds
    seconds: of loading and running
    peak_bytes: of memory, over the context that :class:`VramResult` tells; None where the engine
        was not measured
    reason: why nothing was measured; None when it was
    """

    engine: str
    version: str | None
    device: str | None = None
    logits: LogitsResult | None = None
    against_decoded: LogitsResult | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One figure beside its limit.

    value: None when it was not measured
    why: where the limit comes from, or why nothing was measured
    """

    name: str
    value: float | None
    limit: float
    relation: Literal["<=", ">="]
    status: Status
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineResult:
    """An artifact's predictions beside those of plain rounding on the same grid.

    path: of the baseline, its base name
    kl_ratio: mean KL divergence / the baseline's
    interval: 95 % of that ratio, windows drawn in pairs
    """

    path: str
    kl_ratio: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSample:
    """What each of several models writes after a prompt.

    texts, seconds: by label
    """

    prompt: str
    texts: Mapping[str, str]
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactResult:
    """Everything found out about one artifact.

    target: ``gguf:q4_k_m``; what is known of it where it was made elsewhere
    path: as given, or its base name
    method: the chain that made it; None when it is not known
    grid_class: the class whose default gates hold: ``4-bit``
    bits_per_weight: over all values of the artifact
    digests: sha256 by file, relative to the artifact
    faults: of the artifact as a whole: tensors that are missing, tokenizer, files
    warnings: of the artifact as a whole, what is odd and may be right
    """

    target: str
    path: str
    method: str | None = None
    grid_class: str
    bytes: int
    bits_per_weight: float
    digests: Mapping[str, str] = field(default_factory=dict)
    tensors: tuple[TensorResult, ...] = ()
    blocks: tuple[BlockResult, ...] = ()
    logits: LogitsResult | None = None
    runtimes: tuple[RuntimeResult, ...] = ()
    vram: VramResult | None = None
    gates: tuple[GateResult, ...] = ()
    baseline: BaselineResult | None = None
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    status: Status
    samples: tuple[TextSample, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Artifacts beside the source they were made from.

    source: base name
    source_digest: sha256 of names, shapes, dtypes and the files' sizes, as hex
    settings: depth, windows, gates: what is needed to repeat it
    environment: versions and the machine
    command: the command line that repeats it
    baselines: what the artifacts were to beat, itself not judged
    """

    qconv_version: str
    source: str
    source_digest: str
    settings: Mapping[str, Any]
    environment: Mapping[str, str]
    artifacts: tuple[ArtifactResult, ...]
    status: Status
    command: str
    baselines: tuple[ArtifactResult, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result as JSON-able data (``schemas/validation.schema.json``)."""
        made: dict[str, Any] = to_json(self)
        return made


def worst(statuses: Iterable[Status]) -> Status:
    """The status of a whole from those of its parts; ``unmeasured`` when there are none."""
    seen = set(statuses)
    return next((status for status in _WORST_FIRST if status in seen), "unmeasured")


def has_faults(result: ArtifactResult) -> bool:
    """Whether anything is wrong with an artifact or one of its tensors, whatever its figures."""
    return bool(result.faults) or any(each.faults for each in result.tensors)


def has_warnings(result: ArtifactResult) -> bool:
    """Whether an artifact or one of its tensors should be looked at, whatever its figures."""
    return bool(result.warnings) or any(each.warnings for each in result.tensors)


def to_json(value: object) -> Any:  # noqa: ANN401 - whatever JSON has
    """Records, mappings and sequences as JSON-able data.

    Numbers that are not finite become ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``: null stays for
    what was not measured.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: to_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
