"""``qconv fit``: tell whether a model fits a device's memory, and which format to take."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Optional

import typer

from . import _options as given  # noqa: TC001 - Typer reads the annotations
from ._output import results_only, warn, write_json
from ._sizes import parse_size

#: What else is not enough: ARCHITECTURE's code for disk, RAM and VRAM.
_DOES_NOT_FIT = 5


class Caches(str, Enum):
    """Types of keys and values."""

    f16 = "f16"
    f32 = "f32"
    q8_0 = "q8_0"
    q4_0 = "q4_0"
    fp8 = "fp8"


class Runtimes(str, Enum):
    """What serves the model."""

    llama_cpp = "llama.cpp"
    vllm = "vllm"
    transformers = "transformers"
    onnxruntime = "onnxruntime"


def fit(
    *,
    model: given.Model,
    vram: Annotated[
        Optional[str],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Option(
            "--vram",
            metavar="SIZE",
            show_default=False,
            help="Memory of the device, e.g. 8GiB; with --measure, by default, all that it has.",
        ),
    ] = None,
    to: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--to",
            metavar="TARGET",
            show_default=False,
            help="Ask about this target, e.g. gguf:q4_k_m; repeat it. Otherwise: what a quantized "
            "model is, or every format that a float one can become.",
        ),
    ] = None,
    context: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--context",
            metavar="TOKENS",
            min=1,
            show_default=False,
            help="Tokens of a sequence; by default 8192, or all that the model was made for.",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Sequences at a time.")
    ] = 1,
    cache: Annotated[
        Optional[Caches],  # noqa: UP045
        typer.Option(
            "--cache", show_default=False, help="Type of keys and values, where it is known."
        ),
    ] = None,
    runtime: Annotated[
        Optional[Runtimes],  # noqa: UP045
        typer.Option("--runtime", show_default=False, help="What serves the model."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Run the model as it is stored on --device, and compare what that takes.",
        ),
    ] = False,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="To measure on: cpu, cuda[:n], auto.")
    ] = "auto",
    quiet: given.Quiet = False,
    as_json: given.Json = False,
    debug: given.Debug = False,  # noqa: ARG001 - read before parsing, so that it always works
) -> None:
    """Tell whether a model fits a device's memory, up to which context, and what to take.

    Nothing is written; weights are read with --measure only. Exit code 5: it does not fit as asked.
    """
    import qconv

    nbytes = None if vram is None else parse_size(vram, "--vram")
    from ._progress import looking

    with results_only(), looking(quiet=quiet) as progress:
        found = qconv.fit(
            model,
            nbytes,
            to=to,
            context=context,
            batch=batch,
            cache_type=cache.value if cache else None,
            runtime=runtime.value if runtime else None,
            measure_on=device if measure else None,
            progress=progress,
        )
    warn(found.warnings)
    if as_json:
        write_json(found.to_json())
    else:
        from ._render_fit import render_fit

        render_fit(found)
    if not found.fits:
        raise typer.Exit(_DOES_NOT_FIT)
