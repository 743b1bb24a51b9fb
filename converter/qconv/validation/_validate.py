"""Validation from end to end: artifacts in, their figures and verdicts out."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qconv._version import __version__
from qconv.errors import QconvError, UnreadableInput, Unsupported, UsageError
from qconv.validation._bytes import BytesFound, check_bytes
from qconv.validation._checks import plugin_faults
from qconv.validation._engine_tokens import TokensFound
from qconv.validation._files import digests_of, files_of, source_digest
from qconv.validation._gates import check_names, grid_class, judge
from qconv.validation._matching import match
from qconv.validation._model import ModelFound, Running, check_model
from qconv.validation._planned import companions_of
from qconv.validation._relative import Validated, with_relative_gates
from qconv.validation._results import (
    ArtifactResult,
    GateResult,
    RuntimeResult,
    Status,
    Validation,
    has_faults,
    has_warnings,
    worst,
)
from qconv.validation._runtime import Engine
from qconv.validation._settings import settings_faults
from qconv.validation._tokenizer import tokenizer_faults
from qconv.validation._vram import asks_to_measure, device_memory, with_peak

if TYPE_CHECKING:
    import torch

    from qconv._host import Host
    from qconv._sources import OpenedSource
    from qconv.memory import VramResult
    from qconv.validation._bytes import Progress
    from qconv.validation._matching import Match
    from qconv.validation._planned import Companions

Depth = Literal["bytes", "model", "runtime"]

#: Windows of held-out text by default; tokens of each.
WINDOWS, WINDOW_LENGTH = 32, 512

#: Tokens of a sequence for which memory is predicted.
CONTEXT = 4096

#: Gates of what a baseline is not run for.
_OF_ENGINES = ("engine", "vram")

#: Why predictions are unmeasured where nobody asked for them.
_NOT_RUN = "depth bytes runs no model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to validate, and how.

    target: what the artifacts are, ``gguf:q4_k_m``; None: find out
    text: held-out text: ``builtin``, which qconv never calibrates on, or files
    calibrated_on: a file of ``qconv calibrate`` that the windows must share nothing with
    gates: limits by name, see ``qconv validate --help``
    baselines: artifacts of plain rounding, which those on the same grid must beat
    context: tokens of a sequence, for which memory on the device is predicted
    measure: measure that memory, too; None: at depth ``runtime`` on CUDA
    """

    artifacts: Sequence[Path]
    against: Path
    target: str | None = None
    depth: Depth = "model"
    windows: int = WINDOWS
    window_length: int = WINDOW_LENGTH
    text: Sequence[str] = ("builtin",)
    calibrated_on: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    max_ram: int | None = None
    gates: Mapping[str, float] = field(default_factory=dict)
    baselines: Sequence[Path] = ()
    context: int = CONTEXT
    measure: bool | None = None
    command: str = ""


def run(request: Request, host: Host, *, progress: Progress) -> Validation:
    """Validate every artifact.

    Raises:
        UsageError: a gate, depth or target that there is none of.
        UnreadableInput: the source, or the path of an artifact, cannot be read.
        QconvError: the source cannot be run.
    """
    from qconv._sources import open_source

    _check(request)
    with open_source(request.against, host) as source:
        windows = _Windows(request, source)
        found = {
            path: _Validating(
                _asked_of(path, request), host, source, windows, path, progress
            ).validated()
            for path in dict.fromkeys((*request.baselines, *request.artifacts))
        }
        baselines = [found[path] for path in request.baselines]
        results = with_relative_gates(
            [found[path] for path in request.artifacts],
            baselines,
            source,
            request.gates,
            progress=progress,
        )
        digest = source_digest(source)
    return Validation(
        qconv_version=__version__,
        source=request.against.resolve().name,
        source_digest=digest,
        settings=_settings(request, windows),
        environment=_environment(),
        artifacts=results,
        status=worst(each.status for each in results),
        command=request.command,
        baselines=tuple(each.result for each in baselines),
    )


def _asked_of(path: Path, request: Request) -> Request:
    """What is asked of an artifact: of one that is but a baseline, predictions and no more."""
    if path in request.artifacts:
        return request
    depth: Depth = "model" if request.depth == "runtime" else request.depth
    gates = {name: limit for name, limit in request.gates.items() if name not in _OF_ENGINES}
    return replace(request, depth=depth, measure=False, gates=gates)


def _check(request: Request) -> None:
    check_names(request.gates)
    if request.depth not in ("bytes", "model", "runtime"):
        raise UsageError(f"depth {request.depth!r} is none; choose bytes, model or runtime")
    if "beats" in request.gates and not request.baselines:
        raise UsageError("gate 'beats' needs something to beat; name it with --baseline")
    if request.baselines and {*request.artifacts} <= {*request.baselines}:
        raise UsageError("every artifact is a baseline; name one that must beat them, too")
    for path in (*request.artifacts, *request.baselines):
        if not path.exists():
            raise UnreadableInput(f"{path}: no such file or folder; give an artifact to validate")


class _Windows:
    """The held-out windows, built when the first model is run.

    digest: of the windows; None where none were needed
    """

    def __init__(self, request: Request, source: OpenedSource) -> None:
        self._request, self._source = request, source
        self._tokens: tuple[torch.Tensor, ...] | None = None
        self.digest: str | None = None

    def tokens(self) -> tuple[torch.Tensor, ...]:
        if self._tokens is None:
            from qconv.calibration import Calibration, evaluation_windows, load_calibration

            request, model = self._request, self._source.model
            # no template: its system prompt would be in every conversation, calibrated on or not
            settings = Calibration(
                source=tuple(request.text),
                windows=request.windows,
                window_length=request.window_length,
                chat_template=False,
            )
            known = None
            if request.calibrated_on is not None:
                known = load_calibration(request.calibrated_on, model).windows
            found = evaluation_windows(settings, self._source, known)
            self._tokens, self.digest = found.tokens, found.digest
        return self._tokens


@dataclass(frozen=True, slots=True)
class _Validating:
    """One artifact under way."""

    request: Request
    host: Host
    source: OpenedSource
    windows: _Windows
    path: Path
    progress: Progress

    def validated(self) -> Validated:
        digests = digests_of(self.path, self.progress)
        try:
            matched = match(self.path, self.source, self.host, self.request.target)
        except UnreadableInput as error:
            return Validated(result=self._unreadable(digests, error), match=None)
        return Validated(result=self._result(matched, digests), match=matched)

    def _result(self, matched: Match, digests: Mapping[str, str]) -> ArtifactResult:
        found = check_bytes(matched, self.source, progress=self.progress)
        planned, unplanned = self._planned(matched)
        faults = [*found.faults, *self._tokenizer(planned)]
        faults += [] if planned is None else settings_faults(self.path, planned)
        faults += plugin_faults(self.host, matched, self.source)
        ran = _Ran(made=ModelFound(reason=_NOT_RUN))
        if self.request.depth != "bytes":
            ran = self._run(matched, planned)
            faults += [*ran.made.faults, *ran.token_faults]
        made = ran.made
        vram, unknown = self._vram()
        runtimes = tuple(with_peak(each, vram) for each in ran.runtimes)
        inputs = any(matched.activation(plan) for plan in matched.plans)
        result = ArtifactResult(
            target=matched.label,
            path=self.path.name,
            grid_class=grid_class(found.tensors, inputs=inputs),
            bytes=sum(each.stat().st_size for each in files_of(self.path).values()),
            bits_per_weight=_bits(found),
            digests=digests,
            tensors=found.tensors,
            blocks=made.blocks,
            logits=made.logits,
            runtimes=runtimes,
            vram=vram,
            faults=tuple(faults),
            warnings=found.warnings,
            status="unmeasured",
        )
        reasons = {**self._not_run(runtimes), "vram": unknown}
        reason = made.reason or _NOT_RUN
        judged = self._judged(result, reason, reasons, predicts=not made.headless)
        unknowns = {"settings": unplanned, "tokens": ran.tokens.reason}
        return _with_unmeasured(judged, unknowns)

    def _judged(
        self,
        result: ArtifactResult,
        reason: str,
        reasons: Mapping[str, str] | None = None,
        *,
        predicts: bool = True,
    ) -> ArtifactResult:
        weights = sum(info.numel for info in self.source.model.tensors.values())
        gates = judge(
            result,
            self.request.gates,
            weights=weights,
            reason=reason,
            reasons=reasons or {},
            predicts=predicts,
        )
        statuses: list[Status] = [each.status for each in gates]
        if self.request.depth == "runtime":
            statuses += ["unmeasured" for each in result.runtimes if each.reason is not None]
        if self.request.measure and (result.vram is None or result.vram.reason is not None):
            statuses.append("unmeasured")
        if has_warnings(result):
            statuses.append("warn")
        return replace(
            result, gates=gates, status="fail" if has_faults(result) else worst(statuses)
        )

    def _unreadable(self, digests: Mapping[str, str], error: UnreadableInput) -> ArtifactResult:
        result = ArtifactResult(
            target=self.request.target or "unknown",
            path=self.path.name,
            grid_class="float",
            bytes=sum(each.stat().st_size for each in files_of(self.path).values()),
            bits_per_weight=0.0,
            digests=digests,
            faults=(str(error),),
            status="fail",
        )
        return self._judged(result, "the artifact cannot be read")

    def _not_run(self, runtimes: Sequence[RuntimeResult]) -> dict[str, str]:
        """Why the engine is unmeasured, where it is."""
        if self.request.depth != "runtime":
            return {"engine": f"depth {self.request.depth} runs no engine; --depth runtime does"}
        told = [each.reason for each in runtimes if each.reason is not None]
        return {"engine": told[0]} if told else {}

    def _vram(self) -> tuple[VramResult | None, str]:
        """Memory on the device, predicted or measured; or why not."""
        request = self.request
        measured = asks_to_measure(request.measure, request.depth, request.device)
        if measured:
            self.progress("memory", 0, 1)
        return device_memory(
            self.path,
            context=request.context,
            device=request.device,
            measured=measured,
            asked=bool(request.measure),
        )

    def _planned(self, matched: Match) -> tuple[Companions | None, str | None]:
        """What lies beside the weights; or why not, where that takes options that nobody gave."""
        try:
            return companions_of(matched.layout()), None
        except QconvError as error:
            return None, f"{error}; name the target with the options it was made with (--target)"

    def _tokenizer(self, planned: Companions | None) -> tuple[str, ...]:
        faults = tokenizer_faults(self.path, self.source.model, planned)
        return tuple(f"tokenizer: {each}" for each in faults)

    def _run(self, matched: Match, planned: Companions | None) -> _Ran:
        request = self.request
        try:
            running = Running(
                windows=self.windows.tokens(),
                device=request.device,
                dtype=request.dtype,
                max_ram=request.max_ram,
            )
            if request.depth == "model":
                made = check_model(matched, self.source, running, progress=self.progress)
                return _Ran(made=made)
            context = max(len(each) for each in running.windows)
            with Engine(self.host, self.path, context, request.device) as engine:
                tokens = engine.tokens(self.source.model, planned)
                made = check_model(
                    matched, self.source, running, progress=self.progress, engine=engine
                )
                return _Ran(made=made, runtimes=(engine.result(),), tokens=tokens)
        except (
            Unsupported
        ) as error:  # the source is of a kind that cannot be run, which is no fault
            return _Ran(made=ModelFound(reason=str(error)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """What running the model, and the engine, gave."""

    made: ModelFound
    runtimes: tuple[RuntimeResult, ...] = ()
    tokens: TokensFound = field(default_factory=TokensFound)

    @property
    def token_faults(self) -> list[str]:
        """What the engine makes of text, with its name."""
        engines = ", ".join(each.engine for each in self.runtimes)
        return [f"tokens in {engines}: {each}" for each in self.tokens.faults]


def _with_unmeasured(result: ArtifactResult, reasons: Mapping[str, str | None]) -> ArtifactResult:
    """What could not be compared is a gate, so that it is seen and never passes.

    reasons: by what it is; None: it was compared
    """
    gates = tuple(
        GateResult(name=name, value=None, limit=0.0, relation="<=", status="unmeasured", why=reason)
        for name, reason in reasons.items()
        if reason is not None
    )
    status = worst((result.status, *(each.status for each in gates)))
    return replace(result, gates=(*result.gates, *gates), status=status)


def _bits(found: BytesFound) -> float:
    weights = bits = 0.0
    for each in found.tensors:
        numel = 1
        for size in each.shape:
            numel *= size
        weights += numel
        bits += numel * each.bits_per_weight
    return bits / max(1.0, weights)


def _settings(request: Request, windows: _Windows) -> dict[str, object]:
    return {
        "depth": request.depth,
        "windows": request.windows,
        "window_length": request.window_length,
        "windows_digest": windows.digest,
        "text": [Path(each).name for each in request.text],
        "device": request.device,
        "dtype": request.dtype,
        "gates": dict(request.gates),
        "baselines": [each.name for each in request.baselines],
        "context": request.context,
        "measure": request.measure,
    }


def _environment() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "numpy", "transformers", "gguf", "onnxruntime", "safetensors"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
