"""The Python API: plan, convert, inspect. The command line is a thin layer over these."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qconv.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from qconv._host import Host, Target
    from qconv.checkpoint import Checkpoint
    from qconv.conversion import Conversion
    from qconv.inspection import Inspection
    from qconv.planning import Plan
    from qconv.plugin import BackendSpec, Event, MethodSpec

Search = Literal["default", "ggml"]


def plan(
    model: str | Path,
    to: str | Sequence[str],
    *,
    out: str | Path = ".",
    method: str = "rtn",
    force: bool = False,
    max_fallback: float | None = None,
    allow_unused: bool = False,
    search: Search = "default",
    threads: int | None = None,
    max_ram: int | None = None,
) -> Plan:
    """Plan a conversion completely and write nothing.

    model: HF directory, ``.safetensors`` file, ``.safetensors.index.json`` or ``.gguf`` file
    to: targets such as ``gguf:q4_k_m``; case, ``_`` and ``-`` in the format do not count
    out: directory for the artifacts
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
    from qconv.checkpoint import open_checkpoint

    host = load_plugins()
    chosen = _choose(host, to, method, search)
    with open_checkpoint(model) as checkpoint:
        made = _make_plan(
            host,
            checkpoint,
            *chosen,
            model=Path(model),
            out=Path(out),
            allow_unused=allow_unused,
            threads=threads,
            max_ram=max_ram,
        )
    _check(made, force=force, max_fallback=max_fallback)
    return made


def convert(
    model: str | Path,
    to: str | Sequence[str],
    *,
    out: str | Path = ".",
    method: str = "rtn",
    force: bool = False,
    max_fallback: float | None = None,
    allow_unused: bool = False,
    search: Search = "default",
    threads: int | None = None,
    max_ram: int | None = None,
    resume: bool = True,
    observer: Callable[[Event], None] | None = None,
) -> Conversion:
    """Convert a checkpoint into one artifact per target, in one read of its weights.

    Nothing appears under a final name before it is whole. Takes what :func:`plan` takes, and:

    resume: go on from what an interrupted run of the same conversion left
    observer: called with every event of :data:`qconv.plugin.Event`

    Raises:
        qconv.errors.QconvError: its subclass and message say what is wrong and what to do.
    """
    from qconv._host import load_plugins
    from qconv.checkpoint import open_checkpoint
    from qconv.conversion import run

    host = load_plugins()
    chosen = _choose(host, to, method, search)
    rounder = host.method(chosen[0].name)
    with open_checkpoint(model) as checkpoint:
        made = _make_plan(
            host,
            checkpoint,
            *chosen,
            model=Path(model),
            out=Path(out),
            allow_unused=allow_unused,
            threads=threads,
            max_ram=max_ram,
        )
        _check(made, force=force, max_fallback=max_fallback)
        return run(
            made,
            checkpoint,
            rounder,
            resume=resume,
            force=force,
            observer=_observers(host, observer),
        )


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


def _choose(
    host: Host, to: str | Sequence[str], method: str, search: Search
) -> tuple[MethodSpec, tuple[tuple[Target, Mapping[str, str]], ...]]:
    """Find the method and targets by name, before any file is opened."""
    wanted = [to] if isinstance(to, str) else list(to)
    if not wanted:
        raise UsageError("no target given; say what to write, e.g. --to gguf:q4_k_m")
    targets = tuple(host.resolve_target(text) for text in wanted)
    if len({(target.label, str(target.options)) for target in targets}) != len(targets):
        raise UsageError(f"a target is given twice: {', '.join(wanted)}; name each once")
    return host.method_spec(method), tuple(
        (target, _with_search(target, search)) for target in targets
    )


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
    host: Host,
    checkpoint: Checkpoint,
    method: MethodSpec,
    targets: Sequence[tuple[Target, Mapping[str, str]]],
    *,
    model: Path,
    out: Path,
    allow_unused: bool,
    threads: int | None,
    max_ram: int | None,
) -> Plan:
    from qconv.planning import build_plan, default_threads

    if threads is not None and threads < 1:
        raise UsageError(f"threads {threads}: at least one is needed; leave --threads out for all")
    specs: list[MethodSpec | BackendSpec] = [method, *(target.backend for target, _ in targets)]
    return build_plan(
        source=model,
        out=out,
        model=checkpoint.model,
        method=method.name,
        streams=method.streams,
        targets=[
            (target.label, host.backend(target.backend.name), target.format, options)
            for target, options in targets
        ],
        allow_unused=allow_unused,
        threads=threads or default_threads(),
        max_ram=max_ram,
        warnings=checkpoint.warnings,
        plugins=list(dict.fromkeys(host.owner(spec).label for spec in specs)),
    )


def _check(made: Plan, *, force: bool, max_fallback: float | None) -> None:
    from qconv.conversion import check_outputs
    from qconv.planning import check_fallbacks

    check_fallbacks(made, max_fallback)
    check_outputs(made.out, made.targets, made.source, force=force)


def _observers(host: Host, observer: Callable[[Event], None] | None) -> Callable[[Event], None]:
    """Plugins watch first; the caller's own observer may raise, and then the work stops."""

    def both(event: Event) -> None:
        host.notify(event)
        if observer is not None:
            observer(event)

    return both
