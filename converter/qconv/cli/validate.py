"""``qconv validate``: measure artifacts against the checkpoint they were made from."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from . import _options as given
from ._output import results_only, say, write_json
from ._sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qconv.validation import Validation


class Depths(str, Enum):
    """How deep to look."""

    bytes = "bytes"
    model = "model"
    runtime = "runtime"


#: Windows by default, and with --quick; tokens of each.
_WINDOWS, _LENGTH, _QUICK_WINDOWS, _QUICK_LENGTH = 32, 512, 8, 256

#: Tokens of a sequence that memory on the device is predicted for.
_CONTEXT = 4096

#: Held-out text that comes with qconv.
_BUILTIN = "builtin"

#: Exit code of a gate that failed, or that was asked for and not measured.
_GATE = 6


def validate(
    *,
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="ARTIFACT...", show_default=False, help="File or folder that qconv wrote."
        ),
    ],
    against: Annotated[
        Path,
        typer.Option(
            "--against", metavar="MODEL", show_default=False, help="Checkpoint it was made from."
        ),
    ],
    target: Annotated[
        Optional[str],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Option(
            "--target",
            metavar="TARGET",
            show_default=False,
            help="What it is, e.g. safetensors:int4,group_size=64; found out otherwise.",
        ),
    ] = None,
    depth: Annotated[
        Depths,
        typer.Option(
            "--depth",
            help="bytes: decode and compare every tensor; model: also run both side by side; "
            "runtime: also the real engine.",
        ),
    ] = Depths.model,
    windows: Annotated[
        int, typer.Option("--windows", metavar="N", min=1, help="Windows of held-out text.")
    ] = _WINDOWS,
    window_length: Annotated[
        int, typer.Option("--window-length", metavar="TOKENS", min=2, help="Tokens of a window.")
    ] = _LENGTH,
    quick: Annotated[
        bool,
        typer.Option("--quick", help=f"{_QUICK_WINDOWS} windows of {_QUICK_LENGTH} tokens."),
    ] = False,
    text: Annotated[
        Optional[list[str]],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Option(
            "--text",
            metavar="SOURCE",
            show_default=False,
            help="Held-out text: files, or builtin (the default), which is never calibrated on.",
        ),
    ] = None,
    calibrated_on: Annotated[
        Optional[Path],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Option(
            "--calibrated-on",
            metavar="FILE",
            show_default=False,
            help="File of 'qconv calibrate' that the held-out text must share nothing with.",
        ),
    ] = None,
    gate: Annotated[
        Optional[list[str]],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Option(
            "--gate",
            metavar="NAME=LIMIT",
            show_default=False,
            help="Fail beyond this limit, e.g. kl=0.05; repeat it for more.",
        ),
    ] = None,
    baseline: Annotated[
        Optional[list[Path]],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Option(
            "--baseline",
            metavar="ARTIFACT",
            show_default=False,
            help="Plain rounding (--method rtn) that artifacts on the same grid must beat; repeat "
            "it for other grids. It is measured, but not judged.",
        ),
    ] = None,
    context: Annotated[
        int,
        typer.Option(
            "--context", metavar="TOKENS", min=1, help="Sequence to predict device memory for."
        ),
    ] = _CONTEXT,
    measure: Annotated[
        Optional[bool],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Option(
            "--measure/--no-measure",
            show_default=False,
            help="Also load it, run such a sequence, and measure the memory that takes; by default "
            "at depth runtime on CUDA.",
        ),
    ] = None,
    prompt: Annotated[
        Optional[list[str]],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Option(
            "--prompt",
            metavar="TEXT",
            show_default=False,
            help="Also let the source and the artifacts go on with this text, as 'qconv compare' "
            "does; repeatable.",
        ),
    ] = None,
    report: Annotated[
        Optional[Path],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Option(
            "--report",
            metavar="DIR",
            show_default=False,
            help="Write report.html, report.json and junit.xml there; of an error, error.txt.",
        ),
    ] = None,
    device: given.Device = "auto",
    dtype: given.Dtype = given.Dtypes.auto,
    max_ram: given.MaxRam = None,
    tensors: given.Tensors = False,
    quiet: given.Quiet = False,
    as_json: given.Json = False,
    debug: given.Debug = False,  # noqa: ARG001 - read before parsing, so that it always works
) -> None:
    """Measure artifacts against the checkpoint they were made from, and judge them by gates.

    Exit code 6: a gate failed, or what was asked for could not be measured.
    """
    import qconv

    from ._gate_options import parse_gates
    from ._kept import kept_in
    from ._progress import reading

    gates = parse_gates(gate or [])
    nbytes = None if max_ram is None else parse_size(max_ram, "--max-ram")
    if quick:
        windows, window_length = _QUICK_WINDOWS, _QUICK_LENGTH
    with kept_in(report), results_only(), reading(quiet=quiet) as progress:
        validation = qconv.validate(
            [*artifacts],
            against,
            target=target,
            depth=depth.value,
            windows=windows,
            window_length=window_length,
            text=text or _BUILTIN,
            calibrated_on=calibrated_on,
            device=device,
            dtype=dtype.value,
            max_ram=nbytes,
            gates=gates,
            baseline=baseline or (),
            context=context,
            measure=measure,
            command=_command(
                artifacts,
                against,
                {
                    "--target": target,
                    "--depth": depth.value,
                    "--windows": windows,
                    "--window-length": window_length,
                    "--text": [_base_name(each) for each in text or ()],
                    "--calibrated-on": None if calibrated_on is None else calibrated_on.name,
                    "--gate": gate,
                    "--baseline": [each.resolve().name for each in baseline or ()],
                    "--context": None if context == _CONTEXT else context,
                    "--measure": measure or None,
                    "--no-measure": True if measure is False else None,
                    "--prompt": prompt,
                    "--device": None if device == "auto" else device,
                    "--dtype": None if dtype is given.Dtypes.auto else dtype.value,
                    "--max-ram": max_ram,
                },
            ),
            progress=progress,
        )
        silent = False
        if prompt:
            validation, silent = _with_texts(
                validation, [against, *artifacts], prompts=prompt, device=device
            )
    if report is not None:
        from qconv.reports import write

        say(f"report: {write(validation, report).page}")
    if as_json:
        write_json(validation.to_json())
    else:
        from ._render_validation import render_validation

        render_validation(validation, every_tensor=tensors)
    needed = {*gates, *({"beats"} if baseline else ())}
    asked = (
        depth is not Depths.bytes
        or bool(measure)
        or any(
            each.status == "unmeasured" and each.name in needed
            for artifact in validation.artifacts
            for each in artifact.gates
        )
    )
    if validation.status == "fail" or (validation.status == "unmeasured" and asked):
        say(f"validation: {validation.status}; the gates above say why")
        raise typer.Exit(_GATE)
    if silent:
        raise typer.Exit(_GATE)


def _with_texts(
    validation: Validation, paths: list[Path], *, prompts: list[str], device: str
) -> tuple[Validation, bool]:
    """The validation with what all of them write; and whether one of them wrote nothing."""
    from qconv.comparison import compare
    from qconv.reports import with_texts

    comparison = compare(paths, prompts=prompts, device=device)
    for each in comparison.unmeasured:
        say(f"warning: {each.name} wrote nothing: {each.reason}")
    return with_texts(validation, comparison), bool(comparison.unmeasured)


def _command(
    artifacts: list[Path],
    against: Path,
    options: Mapping[str, str | int | bool | list[str] | None],
) -> str:
    """The command that repeats it, without the directories of this machine.

    options: by name; of a list each is given; True for those without a value; None is left out
    """
    words = ["qconv", "validate", *(each.resolve().name for each in artifacts)]
    words += ["--against", against.resolve().name]
    for name, value in options.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        words += [word for each in values for word in _said(name, each)]
    return shlex.join(words)


def _said(name: str, value: str | int | bool) -> tuple[str, ...]:  # noqa: FBT001 - of an option
    return (name,) if value is True else (name, str(value))


def _base_name(text: str) -> str:
    return text if text == _BUILTIN else Path(text).name
