"""``qconv calibrate``: keep windows and statistics in a file, for any number of conversions."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from qconv.errors import UsageError

from . import _options as given
from ._calibration import WINDOW_LENGTH, WINDOWS
from ._output import results_only, say, warn, write_json, write_line
from ._sizes import format_bytes, format_count, format_seconds, parse_size

if TYPE_CHECKING:
    from qconv.calibration import Calibrated, SourceReport

#: Seconds between two lines where there is no terminal to draw a bar on.
_LINE_EVERY = 10.0


class Kept(str, Enum):
    """What is kept of every linear input."""

    full = "full"
    diagonal = "diagonal"
    none = "none"


def calibrate(
    *,
    model: given.Model,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", show_default=False, help="*.safetensors"),
    ],
    calibration: given.CalibrationSources = None,
    windows: Annotated[
        str, typer.Option("--windows", metavar="N", help="How many windows, or all.")
    ] = str(WINDOWS),
    window_length: given.WindowLength = WINDOW_LENGTH,
    sampling: given.SamplingOption = given.Sampling.random,
    no_packing: given.NoPacking = False,
    no_chat_template: Annotated[
        bool, typer.Option("--no-chat-template", help="Take conversations as plain text.")
    ] = False,
    seed: given.Seed = 0,
    min_tokens_per_expert: given.MinTokensPerExpert = None,
    statistics: Annotated[
        Kept,
        typer.Option(
            "--statistics",
            help="Of every linear input: its Gram matrix (full), what needs no matrix (diagonal), "
            "or windows only (none).",
        ),
    ] = Kept.full,
    device: given.Device = "auto",
    dtype: given.Dtype = given.Dtypes.auto,
    max_ram: given.MaxRam = None,
    shard: Annotated[
        str,
        typer.Option(
            "--shard", metavar="I/N", help="Run on part I of N of the windows; --add joins them."
        ),
    ] = "1/1",
    add: Annotated[
        Optional[list[Path]],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Option(
            "--add",
            metavar="FILE",
            show_default=False,
            help="Add up calibration files of disjoint windows instead; repeat it.",
        ),
    ] = None,
    force: given.Force = False,
    quiet: given.Quiet = False,
    as_json: given.Json = False,
    debug: given.Debug = False,  # noqa: ARG001 - read before parsing, so that it always works
) -> None:
    """Calibrate once, for many conversions: choose windows of text and run the model on them.

    Pass the file to other commands with --calibration FILE.
    """
    from qconv.calibration import Calibration, add_calibrations
    from qconv.calibration import calibrate as run

    settings = Calibration(
        source=calibration or "builtin",
        windows=_number_of(windows),
        window_length=window_length,
        sampling=sampling.value,
        packing=not no_packing,
        seed=seed,
        chat_template=not no_chat_template,
        min_tokens_per_expert=min_tokens_per_expert,
    )
    with results_only(), _progress(quiet=quiet) as progress:
        if add:
            _check_add(calibration, shard)
            made = add_calibrations(
                model,
                out,
                add,
                force=force,
                min_tokens_per_expert=min_tokens_per_expert,
                progress=progress,
            )
        else:
            made = run(
                model,
                out,
                settings,
                statistics=statistics.value,
                device=device,
                dtype=dtype.value,
                max_ram=None if max_ram is None else parse_size(max_ram, "--max-ram"),
                shard=_shard(shard),
                force=force,
                progress=progress,
            )
    warn(made.warnings)
    if as_json:
        return write_json(made.to_json())
    return _render(made)


def _number_of(windows: str) -> int | None:
    if windows == "all":
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,8}", windows, re.ASCII):
        raise UsageError(f"--windows '{windows}' must be a whole number from 1 on, or all")
    return int(windows)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text, re.ASCII)
    if not match:
        raise UsageError(f"--shard '{text}' must be a part and how many there are, e.g. 1/2")
    return int(match[1]), int(match[2])


def _check_add(calibration: list[str] | None, shard: str) -> None:
    if calibration or shard != "1/1":
        raise UsageError(
            "--add takes windows from the files it adds; leave --calibration and --shard out"
        )


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, a line now and then elsewhere, nothing when quiet."""
    from ._progress import reading

    with reading(quiet=quiet) as bar:
        yield bar or (_ignore if quiet else _Lines())


def _ignore(_words: str, _done: int, _total: int) -> None:
    """Show nothing."""


class _Lines:
    """A line now and then, for logs."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def __call__(self, words: str, done: int, total: int) -> None:
        if time.monotonic() - self._shown >= _LINE_EVERY:
            self._shown = time.monotonic()
            say(f"{done / max(1, total):4.0%}  {words}")


def _render(made: Calibrated) -> None:
    """Print what was written."""
    report = made.report
    write_line(
        f"{made.path}: {format_bytes(made.nbytes)}, {report.windows} windows, "
        f"{format_count(report.tokens)} tokens, in {format_seconds(made.seconds)}"
    )
    lengths = (
        f"{report.shortest} tokens each"
        if report.shortest == report.longest
        else f"{report.shortest} to {report.longest} tokens, half of them up to {report.median}"
    )
    share = report.vocabulary_share
    of = "" if share is None else f", {share:.1%} of the vocabulary"
    write_line(f"  windows     {lengths}; {report.distinct_tokens} different{of}")
    for source in report.sources:
        windows = f"{source.windows} of {source.candidates} windows"
        write_line(f"  {source.source}: {windows}{_told(source)}")
    if made.inputs:
        least = min(made.inputs, key=lambda each: each.tokens)
        write_line(
            f"  statistics  {made.statistics}, of {len(made.inputs)} inputs of "
            f"{sum(len(each.linears) for each in made.inputs)} linear weights, "
            f"{least.tokens} tokens at least ({least.linears[0]})"
        )
    write_line(f"  digest      {made.digest}")


def _told(source: SourceReport) -> str:
    counts = source.counts
    if counts is None:
        return ""
    told = [
        f"{counts.documents} of {counts.records} documents",
        f"{counts.duplicates} duplicates" * bool(counts.duplicates),
        f"{counts.near_duplicates} near duplicates" * bool(counts.near_duplicates),
        f"{counts.without_text} without text" * bool(counts.without_text),
        f"{counts.urls_shortened} addresses shortened" * bool(counts.urls_shortened),
        f"{counts.control_characters} control characters" * bool(counts.control_characters),
    ]
    return "; " + ", ".join(part for part in told if part)
