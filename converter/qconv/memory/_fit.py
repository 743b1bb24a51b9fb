"""``qconv fit``: which formats of a model fit a device, and which of them to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qconv.errors import QconvError, UsageError
from qconv.memory._json import verdict_json
from qconv.memory._measure import Measurement, device_memory, measure
from qconv.memory._planner import Planner
from qconv.memory._predict import CACHES, make_setting
from qconv.memory._quality import Quality, planned_quality, stored_quality
from qconv.memory._recommend import recommend
from qconv.memory._subject import RUNTIMES, Subject, open_subject
from qconv.memory._verdict import Verdict, budget_of, judge
from qconv.memory._weights import Weights, planned_weights

if TYPE_CHECKING:
    from qconv._host import Host, Target
    from qconv.memory._json import FitJson, OptionJson
    from qconv.memory._recommend import Recommendation
    from qconv.memory._result import VramResult
    from qconv.memory._shape import ModelShape
    from qconv.planning import TargetPlan

#: Tokens of a sequence where nobody says how many; models made for less get less.
CONTEXT = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A format, or what is on disk, in front of a device.

    target: ``gguf:q4_k_m``; ``as stored`` for what is there
    nbytes: of its files; None where it cannot be made
    bits_per_weight: over all tensors; None where that is not known
    predicted, verdict: None where it cannot be made, for ``reason``
    """

    target: str
    runtime: str
    nbytes: int | None = None
    bits_per_weight: float | None = None
    quality: Quality | None = None
    predicted: VramResult | None = None
    verdict: Verdict | None = None
    reason: str | None = None

    @property
    def fits(self) -> bool:
        """As asked."""
        return self.verdict is not None and self.verdict.answer == "fits"

    def to_json(self) -> OptionJson:
        """As JSON-able data."""
        return {
            "target": self.target,
            "runtime": self.runtime,
            "nbytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "quality": self.quality.name if self.quality else None,
            "expected_kl": self.quality.kl if self.quality else None,
            "verdict": verdict_json(self.verdict, self.predicted),
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What fits a device.

    vram: bytes that it has
    context, batch: as asked
    chosen: targets were named; otherwise ``options`` is every format there is
    """

    model: Path
    vram: int
    context: int
    batch: int
    chosen: bool
    options: tuple[Option, ...]
    recommendation: Recommendation | None
    warnings: tuple[str, ...] = ()
    measurement: Measurement | None = None

    @property
    def fits(self) -> bool:
        """Everything that was named does; or one of all formats. What was measured must, too."""
        every = all if self.chosen else any
        measured = self.measurement.result if self.measurement else None
        within = measured is None or (measured.measured or 0) <= budget_of(self.vram, "torch")
        return within and every(option.fits for option in self.options)

    def to_json(self) -> FitJson:
        """As JSON-able data (``schemas/fit.schema.json``)."""
        return {
            "model": str(self.model),
            "vram": self.vram,
            "context": self.context,
            "batch": self.batch,
            "fits": self.fits,
            "options": [option.to_json() for option in self.options],
            "recommendation": self.recommendation.to_json() if self.recommendation else None,
            "warnings": list(self.warnings),
            "measurement": self.measurement.to_json() if self.measurement else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How the model is to be served. runtime, cache_type: None for what suits a format."""

    vram: int
    context: int
    batch: int
    cache_type: str | None
    runtime: str | None


def fit(
    model: str | Path,
    vram: int | None = None,
    *,
    to: str | Sequence[str] | None = None,
    context: int | None = None,
    batch: int = 1,
    cache_type: str | None = None,
    runtime: str | None = None,
    measure_on: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Fit:
    """Tell whether a model fits ``vram`` bytes of a device; nothing is written, no weight is read.

    With ``measure_on`` the model as stored is run there, and what that takes is compared.

    model: a checkpoint, or an artifact of any backend
    to: targets; None for what an artifact is, or every format a checkpoint can become
    context: tokens of a sequence; None for 8192, or all that the model was made for
    batch: sequences at a time
    cache_type: of keys and values; None for the runtime's default
    runtime: ``llama.cpp``, ``vllm``, ``transformers`` or ``onnxruntime``; None for the usual one
    vram: None for all that the device has, where it is measured on
    measure_on: ``cpu``, ``cuda`` or ``cuda:n``
    progress: called with every target that is looked at

    Raises:
        qconv.errors.QconvError: its subclass and message say what is wrong and what to do.
    """
    from qconv._host import load_plugins

    vram = _vram(vram, measure_on, to)
    host = load_plugins()
    targets = None if to is None else host.resolve_targets(to)
    with open_subject(model, host) as subject:
        length = subject.shape.context_length
        asked = Asked(
            vram=vram,
            context=context or min(CONTEXT, length or CONTEXT),
            batch=batch,
            cache_type=cache_type,
            runtime=runtime,
        )
        tell = progress or (lambda _: None)
        if measure_on is None:
            options = _options(subject, host, targets, asked, tell)
        else:
            options = (_stored(subject, asked),)
        return Fit(
            model=Path(model),
            vram=vram,
            context=asked.context,
            batch=batch,
            chosen=targets is not None,
            options=options,
            recommendation=recommend(options) if targets is None else None,
            warnings=_warnings(asked.context, length),
            measurement=None if measure_on is None else _measured(model, asked, measure_on),
        )


def _vram(vram: int | None, measure_on: str | None, to: object) -> int:
    if measure_on is not None and to is not None:
        raise UsageError("what is measured is on disk: leave --to out, or convert first")
    if vram is None and measure_on is not None:
        return device_memory(measure_on)
    if vram is None or vram < 1:
        raise UsageError(f"vram {vram}: give the bytes of memory that the device has (--vram 8GiB)")
    return vram


def _measured(model: str | Path, asked: Asked, device: str) -> Measurement:
    if asked.cache_type is not None or asked.runtime is not None:
        raise UsageError(
            "what is measured is qconv's own run, or the artifact's engine as it comes: leave "
            "--cache and --runtime out"
        )
    return measure(model, context=asked.context, batch=asked.batch, device=device)


def _warnings(context: int, length: int | None) -> tuple[str, ...]:
    if length is None or context <= length:
        return ()
    return (f"context {context} is longer than the {length} tokens the model was made for",)


def _options(
    subject: Subject,
    host: Host,
    targets: Sequence[Target] | None,
    asked: Asked,
    progress: Callable[[str], None],
) -> tuple[Option, ...]:
    """Named targets must be possible; of all formats, those that are not are told with why."""
    if targets is not None:
        if subject.source is None:
            raise UsageError(f"{subject.path}: an ONNX graph; leave --to out to ask about itself")
        return tuple(_planned(subject, Planner(host), target, asked) for target in targets)
    progress("as stored")
    options = [_stored(subject, asked)] if _servable(subject, asked) else []
    if subject.source is None or _is_quantized(subject):
        return tuple(options or [_stored(subject, asked)])
    planner = Planner(host)
    for backend in host.backends:
        for each in backend.formats:
            target = host.resolve_target(f"{backend.name}:{each.name}")
            if each.runtimes and not _suits(each.runtimes, asked):
                continue
            progress(target.label)
            options.append(_tried(subject, planner, target, asked))
    if not options:
        raise UsageError(f"no format is loaded by runtime {asked.runtime!r}, cache as asked")
    return tuple(options)


def _servable(subject: Subject, asked: Asked) -> bool:
    return _suits(RUNTIMES[subject.kind], asked)


def _suits(runtimes: Sequence[str], asked: Asked) -> bool:
    """Whether one of ``runtimes`` is the one asked for, and has the cache asked for."""
    wanted = [asked.runtime] if asked.runtime else list(runtimes[:1])
    return any(
        name in runtimes and (not asked.cache_type or asked.cache_type in CACHES[name])
        for name in wanted
        if name in CACHES
    )


def _is_quantized(subject: Subject) -> bool:
    source = subject.source
    if source is None or getattr(source, "encoded", None):
        return True
    floats = {"F64", "F32", "F16", "BF16"}
    matrices = [info for info in source.model.tensors.values() if len(info.shape) > 1]
    return any(info.dtype not in floats and info.nbytes < 2 * info.numel for info in matrices)


def _stored(subject: Subject, asked: Asked) -> Option:
    runtime = _runtime(f"{subject.path}", RUNTIMES[subject.kind], asked)
    quality = stored_quality(subject.source) if subject.source else None
    source = subject.source
    weights = sum(info.numel for info in source.model.tensors.values()) if source else 0
    return _judged(
        subject.shape,
        subject.weights,
        asked,
        Option(
            target="as stored",
            runtime=runtime,
            nbytes=subject.weights.total,
            bits_per_weight=8 * subject.weights.total / weights if weights else None,
            quality=quality,
        ),
    )


def _tried(subject: Subject, planner: Planner, target: Target, asked: Asked) -> Option:
    try:
        return _planned(subject, planner, target, asked)
    except QconvError as error:
        runtime = asked.runtime or next(iter(_runtimes(target)), "unknown")
        return Option(target=target.label, runtime=runtime, reason=str(error))


def _planned(subject: Subject, planner: Planner, target: Target, asked: Asked) -> Option:
    runtime = _runtime(target.label, _runtimes(target), asked)
    planned = planner.plan(subject, target)
    if runtime == "onnxruntime" and asked.cache_type is None and _in_half(planned):
        asked = replace(asked, cache_type="f16")
    return _judged(
        subject.shape,
        planned_weights(planned),
        asked,
        Option(
            target=target.label,
            runtime=runtime,
            nbytes=planned.nbytes,
            bits_per_weight=planned.bits_per_weight,
            quality=planned_quality(planned),
        ),
    )


def _in_half(planned: TargetPlan) -> bool:
    """Whether a graph computes in float16, and so keeps keys and values in it."""
    floats = {plan.dtype for plan in planned.tensors.tensors if plan.grid is None and plan.dtype}
    return "float16" in floats and "float32" not in floats


def _runtimes(target: Target) -> tuple[str, ...]:
    return next(each.runtimes for each in target.backend.formats if each.name == target.format)


def _runtime(what: str, runtimes: Sequence[str], asked: Asked) -> str:
    """The runtime asked for, which must load ``what``; or its usual one.

    Raises:
        UsageError: it does not, or none is known that does.
    """
    if asked.runtime is not None and asked.runtime not in runtimes:
        raise UsageError(
            f"{what}: not loaded by {asked.runtime!r}, but by {', '.join(runtimes) or 'none known'}"
        )
    if not runtimes:
        raise UsageError(
            f"{what}: its backend names no runtime, so its memory cannot be predicted; "
            "plugin author: see qconv.plugin.FormatSpec.runtimes"
        )
    return asked.runtime or runtimes[0]


def _judged(shape: ModelShape, weights: Weights, asked: Asked, option: Option) -> Option:
    setting = make_setting(
        option.runtime,
        context=asked.context,
        batch=asked.batch,
        cache_type=asked.cache_type,
    )
    predicted, verdict = judge(shape, weights, setting, asked.vram)
    return replace(option, predicted=predicted, verdict=verdict)
