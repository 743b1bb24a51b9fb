"""``qconv transcode``: write a quantized checkpoint in another format, every value as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as given  # noqa: TC001 - Typer reads the annotations
from ._output import results_only, write_json
from ._sizes import parse_size


def transcode(
    *,
    artifact: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACT",
            show_default=False,
            help="Quantized checkpoint: Hugging Face folder, .safetensors file or index.",
        ),
    ],
    to: given.To,
    out: given.Out = Path(),
    allow_unused: given.AllowUnused = False,
    force: given.Force = False,
    threads: given.Threads = None,
    max_ram: given.MaxRam = None,
    no_resume: given.NoResume = False,
    quiet: given.Quiet = False,
    as_json: given.Json = False,
    debug: given.Debug = False,  # noqa: ARG001 - read before parsing, so that it always works
) -> None:
    """Move a quantized checkpoint to other formats without rounding, and prove it.

    Codes are re-coded where every value stays what it is, and refused where one cannot. Before an
    artifact gets its name, it is decoded and compared with the source, tensor by tensor.
    """
    import qconv

    from ._progress import Progress, warned_of

    nbytes = None if max_ram is None else parse_size(max_ram, "--max-ram")
    with results_only(), Progress(quiet=quiet) as progress:
        transcoding = qconv.transcode(
            artifact,
            to,
            out=out,
            allow_unused=allow_unused,
            force=force,
            threads=threads,
            max_ram=nbytes,
            resume=not no_resume,
            observer=warned_of(progress),
        )
    if as_json:
        return write_json(transcoding.to_json())
    from ._render import render_transcoding

    return render_transcoding(transcoding)
