"""The Python API: plan, convert, validate, inspect. The command line is a thin layer over these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from qconv.errors import Unsupported, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from qconv._host import Chain, Host, Target
    from qconv._sources import OpenedSource
    from qconv.calibration import Calibration
    from qconv.checkpoint import Checkpoint
    from qconv.conversion import Conversion, Passes, Steps
    from qconv.inspection import Inspection
    from qconv.planning import CalibrationPlan, Plan
    from qconv.plugin import (
        Backend,
        BackendSpec,
        BlockRounder,
        Event,
        MethodSpec,
        Rounder,
        Transform,
    )
    from qconv.statistics import Statistics
    from qconv.validation import Depth, QuickCheck, Validation

Search = Literal["default", "ggml"]
StatisticsFrom = Literal["shared", "sequential"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def plan(
    model: str | Path,
    to: str | Sequence[str],
    *,
    out: str | Path = ".",
    method: str = "rtn",
    calibration: Calibration | str | Path | None = None,
    statistics: StatisticsFrom | None = None,
    device: str = "auto",
    dtype: Dtype = "auto",
    force: bool = False,
    max_fallback: float | None = None,
    allow_unused: bool = False,
    search: Search = "default",
    threads: int | None = None,
    max_ram: int | None = None,
) -> Plan:
    """Plan a conversion completely and write nothing.

    model: HF directory, ``.safetensors`` file, ``.safetensors.index.json``, ``.gguf`` or ``.onnx``
        file; quantized checkpoints are decoded where a plugin can
    to: targets such as ``gguf:q4_k_m``; case, ``_`` and ``-`` in the format do not count
    out: directory for the artifacts
    method: a chain of steps such as ``awq,gptq``, options after their step: ``gptq,damp=0.05``
    calibration: text to take statistics from; None: qconv's own where the method needs some
    statistics: ``shared``: of the float model, once for all targets; ``sequential``: of the blocks
        as each target has quantized them, which costs a pass per target; None: what suits the chain
    device, dtype: what the model is run on and in; ``auto``: CUDA if there is CUDA, else the CPU;
        in float32 on either
    force: replace artifacts that exist
    max_fallback: largest share of weights, 0 to 1, that may be stored in a fallback type
    allow_unused: leave out source tensors that a format has no place for, instead of refusing
    search: how grids are fitted; ``ggml`` reproduces llama.cpp's bytes
    threads: workers; by default as many as there are cores to use
    max_ram: bytes of resident memory to stay below

    Raises:
        qconv.errors.QconvError: its subclass and message say what is wrong and what to do.
    """
    from qconv._host import load_plugins
    from qconv._sources import open_source

    request = _Request(
        to=to,
        out=Path(out),
        method=method,
        calibration=calibration,
        statistics=statistics,
        device=device,
        dtype=dtype,
        force=force,
        max_fallback=max_fallback,
        allow_unused=allow_unused,
        search=search,
        threads=threads,
        max_ram=max_ram,
    )
    chosen = _choose(load_plugins(), request)
    with open_source(model, chosen.host) as checkpoint:
        return _make_plan(chosen, checkpoint, Path(model))


def convert(
    model: str | Path,
    to: str | Sequence[str],
    *,
    out: str | Path = ".",
    method: str = "rtn",
    calibration: Calibration | str | Path | None = None,
    statistics: StatisticsFrom | None = None,
    device: str = "auto",
    dtype: Dtype = "auto",
    force: bool = False,
    max_fallback: float | None = None,
    allow_unused: bool = False,
    search: Search = "default",
    threads: int | None = None,
    max_ram: int | None = None,
    resume: bool = True,
    validate: bool = True,
    observer: Callable[[Event], None] | None = None,
) -> Conversion:
    """Convert a checkpoint into one artifact per target, in one read of its weights.

    Nothing appears under a final name before it is whole. Takes what :func:`plan` takes, and:

    resume: go on from what an interrupted run of the same conversion left
    validate: read every artifact back before it gets its name: all tensors accounted for, the
        tokenizer compared, a sample of the weights decoded and compared; see :func:`validate` for
        the rest
    observer: called with every event of :data:`qconv.plugin.Event`

    Raises:
        qconv.errors.QconvError: its subclass and message say what is wrong and what to do.
    """
    from qconv._host import load_plugins

    request = _Request(
        to=to,
        out=Path(out),
        method=method,
        calibration=calibration,
        statistics=statistics,
        device=device,
        dtype=dtype,
        force=force,
        max_fallback=max_fallback,
        allow_unused=allow_unused,
        search=search,
        threads=threads,
        max_ram=max_ram,
    )
    chosen = _choose(load_plugins(), request)
    return _converted(chosen, Path(model), resume=resume, validate=validate, observer=observer)


def validate(
    artifacts: str | Path | Sequence[str | Path],
    against: str | Path,
    *,
    target: str | None = None,
    depth: Depth = "model",
    windows: int = 32,
    window_length: int = 512,
    text: str | Path | Sequence[str | Path] = "builtin",
    calibrated_on: str | Path | None = None,
    device: str = "auto",
    dtype: Dtype = "auto",
    max_ram: int | None = None,
    gates: Mapping[str, float] | None = None,
    baseline: str | Path | Sequence[str | Path] = (),
    context: int = 4096,
    measure: bool | None = None,
    command: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> Validation:
    """Measure artifacts against the checkpoint they were made from.

    A gate that fails is in the result, not an exception: see ``status`` there.

    artifacts: files or folders that a backend reads
    against: the float checkpoint, as :func:`convert` takes it
    target: what they are, ``gguf:q4_k_m``; None: found out
    depth: ``bytes``: every tensor accounted for, decoded and compared, and the tokenizer;
        ``model``: also both run side by side, block by block, up to the predictions;
        ``runtime``: also the real engine
    windows, window_length: of held-out text, and the tokens of each
    text: ``builtin``, which nothing is calibrated on, or files
    calibrated_on: a file of :func:`calibrate` that the windows must share nothing with
    gates: limits by name, e.g. ``{"kl": 0.05, "top1": 0.9}``, in place of the defaults
    baseline: artifacts of plain rounding, which those on the same grid must beat; not judged
    context: tokens of a sequence, for which memory on the device is predicted
    measure: load each artifact and run such a sequence, in a process of its own, to measure that
        memory; None: at depth ``runtime`` on CUDA; on a CPU it is the process' memory
    command: what to record as the way to repeat it
    progress: called with a stage, steps done and steps to do

    Raises:
        qconv.errors.QconvError: its subclass and message say what is wrong and what to do.
    """
    from qconv._host import load_plugins
    from qconv.validation import Request, run

    request = Request(
        artifacts=tuple(Path(each) for each in _several(artifacts)),
        against=Path(against),
        target=target,
        depth=depth,
        windows=windows,
        window_length=window_length,
        text=tuple(str(each) for each in _several(text)),
        calibrated_on=None if calibrated_on is None else Path(calibrated_on),
        device=device,
        dtype=dtype,
        max_ram=max_ram,
        gates=gates or {},
        baselines=tuple(Path(each) for each in _several(baseline)),
        context=context,
        measure=measure,
        command=command,
    )
    return run(request, load_plugins(), progress=progress or _unseen)


def inspect(
    path: str | Path,
    *,
    values: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Inspection:
    """Tell what a checkpoint or artifact holds.

    values: also read the weights: NaN, infinities, zero and constant rows, ranges
    progress: called with a tensor's name, bytes read so far, and bytes to read in all

    Raises:
        qconv.errors.UnreadableInput: the file is missing, damaged or hostile.
    """
    from qconv.inspection import inspect as look

    return look(path, values=values, progress=progress)


def _several(given: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    return [given] if isinstance(given, (str, Path)) else given


def _unseen(stage: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What plan and convert were asked for."""

    to: str | Sequence[str]
    out: Path
    method: str
    calibration: Calibration | str | Path | None
    statistics: StatisticsFrom | None
    device: str
    dtype: Dtype
    force: bool
    max_fallback: float | None
    allow_unused: bool
    search: Search
    threads: int | None
    max_ram: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """What a request means: plugins found by name, before any file is opened.

    backends: one instance for all targets of a backend, by its name
    calibration: None when the chain runs no model
    """

    host: Host
    request: _Request
    chain: Chain
    targets: tuple[tuple[Target, Mapping[str, str]], ...]
    backends: Mapping[str, Backend]
    calibration: Calibration | None


def _choose(host: Host, request: _Request) -> _Chosen:
    from qconv.planning import chosen_threads

    chosen_threads(request.threads)
    targets = host.resolve_targets(request.to)
    chain = host.resolve_chain(request.method)
    return _Chosen(
        host=host,
        request=request,
        chain=chain,
        targets=tuple((target, _with_search(target, request.search)) for target in targets),
        backends={
            name: host.backend(name) for name in sorted({each.backend.name for each in targets})
        },
        calibration=_calibration(chain, request),
    )


def _converted(
    chosen: _Chosen,
    model: Path,
    *,
    resume: bool,
    validate: bool,
    observer: Callable[[Event], None] | None,
) -> Conversion:
    """Plan it, calibrate where that is asked for, and carry it out."""
    from qconv._sources import open_source
    from qconv.conversion import input_errors, run
    from qconv.model import exact_arithmetic

    steps = _make_steps(chosen.host, chosen.chain)
    with open_source(model, chosen.host) as checkpoint:
        made = _make_plan(chosen, checkpoint, model)
        watch = chosen.host.watch(observer)
        passes = _make_passes(chosen, made, checkpoint, watch) if chosen.calibration else None
        check = _make_check(chosen, checkpoint) if validate else None
        with exact_arithmetic(passes.model.device if passes and passes.model else None):
            if passes and any(target.tensors.asks_input_errors for target in made.targets):
                found = input_errors(made, checkpoint, steps, passes, observer=watch)
                made = _make_plan(chosen, checkpoint, model, found)
            done = run(
                made,
                checkpoint,
                steps,
                passes=passes,
                resume=resume,
                force=chosen.request.force,
                observer=watch,
                verify=check,
                remembered=check.remembered if check else None,
            )
    return replace(done, checked=tuple(check.checked) if check else ())


def _calibration(chain: Chain, request: _Request) -> Calibration | None:
    """The text to calibrate on, when the chain makes use of any."""
    given = request.calibration
    if chain.calibration == "unused" or (chain.calibration == "optional" and given is None):
        if given is not None or request.statistics is not None:
            named = "calibration" if given is not None else "statistics"
            hint = (
                "give --calibration too, e.g. --calibration builtin"
                if chain.calibration == "optional"
                else f"leave --{named} out, or choose a method that uses it, e.g. gptq"
            )
            raise UsageError(f"method {request.method!r} makes no use of {named} here; {hint}")
        return None
    from qconv.calibration import Calibration

    if given is None:
        return Calibration()
    return given if isinstance(given, Calibration) else Calibration(source=str(given))


def _with_search(target: Target, search: Search) -> Mapping[str, str]:
    if search == "default" or "search" in target.options:
        return target.options
    if all(option.name != "search" for option in target.backend.options):
        raise UsageError(
            f"target {target.label} cannot fit with search {search!r}: backend "
            f"{target.backend.name!r} has no option 'search'; leave --search out"
        )
    return {**target.options, "search": search}


def _make_plan(
    chosen: _Chosen,
    checkpoint: OpenedSource,
    model: Path,
    input_errors: Sequence[Mapping[str, float]] | None = None,
) -> Plan:
    """Plan it, and refuse what the caller set limits to."""
    from qconv._sources import plugins_behind, whole_tensor
    from qconv.conversion import check_outputs
    from qconv.planning import build_plan, check_fallbacks, chosen_threads, source_facts

    host, request, chain = chosen.host, chosen.request, chosen.chain
    _refuse_kind(chosen, checkpoint, model)
    threads = chosen_threads(request.threads)
    specs: list[MethodSpec | BackendSpec] = [step.spec for step in chain.steps]
    specs += [target.backend for target, _ in chosen.targets]
    labels = [host.owner(spec).label for spec in specs]
    made = build_plan(
        source=model,
        out=request.out,
        model=checkpoint.model,
        method=chain.label,
        streams=chain.rounder.spec.streams and not chain.transforms,
        targets=[
            (target.label, chosen.backends[target.backend.name], target.format, options)
            for target, options in chosen.targets
        ],
        allow_unused=request.allow_unused,
        threads=threads,
        max_ram=request.max_ram,
        warnings=checkpoint.warnings,
        plugins=list(dict.fromkeys([*plugins_behind(checkpoint, host), *labels])),
        calibration=_plan_calibration(chosen, checkpoint),
        steps=[step.spec.name for step in chain.steps],
        facts=source_facts(checkpoint, host, threads),
        read=partial(whole_tensor, checkpoint),
        input_errors=input_errors,
    )
    check_fallbacks(made, request.max_fallback)
    check_outputs(made.out, made.targets, made.source, force=request.force)
    return made


def _refuse_kind(chosen: _Chosen, checkpoint: Checkpoint, path: Path) -> None:
    """Refuse a source of a kind that a target's backend does not plan from.

    Raises:
        Unsupported: it is such a one.
    """
    kind = checkpoint.model.kind
    for target, _ in chosen.targets:
        if kind not in target.backend.reads:
            could = [spec.name for spec in chosen.host.backends if kind in spec.reads]
            raise Unsupported(
                f"{path}: {target.label} cannot be made from a source of kind {kind!r}; what can: "
                f"{', '.join(f'{name}:...' for name in could) or 'nothing'}; or convert the "
                "checkpoint that it was made from"
            )


def _plan_calibration(chosen: _Chosen, checkpoint: Checkpoint) -> CalibrationPlan | None:
    if chosen.calibration is None:
        return None
    from qconv.planning import plan_calibration

    settings, request = chosen.calibration, chosen.request
    if checkpoint.model.kind == "onnx":
        from qconv._graphs import refuse_steps

        refuse_steps(checkpoint.model.name, chosen.chain, request.statistics)
    follows = any(step.spec.sequential for step in chosen.chain.steps)
    statistics = request.statistics or ("sequential" if follows else "shared")
    return plan_calibration(
        checkpoint.model,
        source=", ".join(source.label for source in settings.sources),
        windows=settings.windows or 0,
        window_length=settings.window_length,
        statistics=statistics,
        device=request.device,
        dtype=request.dtype,
        streams=len(chosen.targets) if statistics == "sequential" else 1,
    )


def _make_check(chosen: _Chosen, checkpoint: OpenedSource) -> QuickCheck:
    """What looks at artifacts before they get their names."""
    from qconv.validation import QuickCheck

    return QuickCheck(checkpoint, chosen.host)


def _make_steps(host: Host, chain: Chain) -> Steps:
    """Instances of the chain's steps."""
    from qconv._host import DEFAULT_ROUNDER
    from qconv.conversion import Steps

    last = host.step(chain.rounder)
    by_block = chain.rounder.spec.kind == "block_rounder"
    return Steps(
        transforms=tuple(cast("Transform", host.step(step)) for step in chain.transforms),
        rounder=host.method(DEFAULT_ROUNDER) if by_block else cast("Rounder", last),
        block_rounder=cast("BlockRounder", last) if by_block else None,
        gram=any(step.spec.gram for step in chain.steps if _calibrates(step.spec)),
    )


def _make_passes(
    chosen: _Chosen, made: Plan, checkpoint: Checkpoint, watch: Callable[[Event], None]
) -> Passes:
    """Open the model for running, and build the windows it is run on."""
    from qconv.calibration import build_windows
    from qconv.checkpoint import FileCheckpoint
    from qconv.conversion import Passes
    from qconv.model import exact_arithmetic, open_model
    from qconv.plugin import Calibrating

    settings, request = chosen.calibration, chosen.request
    if settings is None or made.calibration is None:
        raise RuntimeError("passes are made for chains that calibrate only")
    if checkpoint.model.kind == "onnx" and isinstance(checkpoint, FileCheckpoint):
        from qconv._graphs import graph_passes

        watch(Calibrating(source=made.calibration.source, windows=made.calibration.windows))
        return graph_passes(checkpoint, settings, chosen.chain, chosen.backends.values(), made)
    sequential = made.calibration.statistics == "sequential"
    saved = None if sequential else _saved(settings, chosen.chain, checkpoint)
    runs = saved is None or bool(chosen.chain.transforms)
    model = None
    if runs:
        watch(Calibrating(source=made.calibration.source, windows=made.calibration.windows))
        model = open_model(
            checkpoint, device=request.device, dtype=request.dtype, max_ram=request.max_ram
        )
    with exact_arithmetic(model.device if model else None):
        windows = build_windows(settings, checkpoint, model=model)
    return Passes(
        model=model,
        windows=windows.tokens[:1] if saved else windows.tokens,
        digest=windows.digest,
        warnings=windows.report.warnings,
        sequential=sequential,
        min_tokens_per_expert=settings.min_tokens_per_expert,
        saved=saved,
    )


def _saved(
    settings: Calibration, chain: Chain, checkpoint: Checkpoint
) -> Mapping[str, Statistics] | None:
    """The statistics of the calibration file that was given, where the chain can do with them.

    Raises:
        UsageError: they hold the diagonal only, and the chain needs more.
        GateFailed: an expert saw fewer tokens than asked for.
    """
    from qconv.calibration import SavedStatistics, check_tokens, load_calibration
    from qconv.calibration._file import FILE_SUFFIX

    (first, *others) = settings.sources
    if others or not first.name.endswith(FILE_SUFFIX) or chain.rounder.spec.kind == "block_rounder":
        return None
    file = load_calibration(first.name, checkpoint.model)
    if not file.linears:
        return None
    needy = [step.spec.name for step in chain.steps if step.spec.gram and _calibrates(step.spec)]
    if needy and not all(seen.gram or not seen.tokens for seen in file.seen):
        raise UsageError(
            f"{first.name}: holds the diagonals of Gram matrices only, and {needy[0]} needs them "
            "whole; calibrate again with qconv calibrate --statistics full"
        )
    check_tokens(file.seen, settings.min_tokens_per_expert)
    return SavedStatistics(file)


def _calibrates(spec: MethodSpec) -> bool:
    return spec.calibration != "unused"
