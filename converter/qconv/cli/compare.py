"""``qconv compare``: what artifacts write after the same prompts, side by side."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Optional

import typer

from qconv.errors import UsageError

from . import _options as given  # noqa: TC001 - Typer reads the annotations
from ._output import results_only, say, write_json

#: A gate failed, or could not be measured.
_UNMEASURED = 6


def compare(
    *,
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B [C...]",
            show_default=False,
            help="GGUF files, checkpoints and ONNX folders, float or quantized; the others are "
            "held to the first.",
        ),
    ],
    prompt: Annotated[
        Optional[list[str]],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Option(
            "--prompt", metavar="TEXT", show_default=False, help="Text to go on with; repeatable."
        ),
    ] = None,
    prompt_file: Annotated[
        Optional[Path],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Option(
            "--prompt-file", metavar="FILE", show_default=False, help="Prompts, one on each line."
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", min=1, help="The most to write after a prompt.")
    ] = 64,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Prompts are messages of a user, written as each artifact's chat template does.",
        ),
    ] = False,
    report: Annotated[
        Optional[Path],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Option(
            "--report",
            metavar="DIR",
            show_default=False,
            help="Write comparison.json and comparison.html there.",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="NAME", help="What engines compute on: auto, cpu, cuda[:n]."
        ),
    ] = "auto",
    quiet: given.Quiet = False,
    as_json: given.Json = False,
    debug: given.Debug = False,  # noqa: ARG001 - read before parsing, so that it always works
) -> None:
    """Let artifacts write, the likeliest token each time, and mark where they part.

    Each runs in its own engine (llama.cpp, transformers, onnxruntime), one after the other, in a
    process of its own, whose time and memory are told. Where an engine is missing, its artifact is
    unmeasured, and the exit code 6.
    """
    from qconv.comparison import compare as run

    prompts = [*(prompt or ()), *_lines(prompt_file)]
    if len(artifacts) < 2:
        raise UsageError(f"{artifacts[0]} alone cannot be compared; name two artifacts or more")
    with results_only():
        comparison = run(
            artifacts,
            prompts=prompts,
            tokens=tokens,
            chat=chat,
            device=device,
            command=_command(artifacts, prompts, ["--chat"] * chat, tokens, device),
            progress=None if quiet else _turn,
        )
    if report is not None:
        from qconv.reports import write_comparison

        say(f"report: {write_comparison(comparison, report)}")
    if as_json:
        write_json(comparison.to_json())
    else:
        from ._render_comparison import render_comparison

        render_comparison(comparison)
    if comparison.unmeasured:
        raise typer.Exit(_UNMEASURED)


def _command(
    artifacts: list[Path], prompts: list[str], flags: list[str], tokens: int, device: str
) -> str:
    """The command that repeats it, without the directories of this machine."""
    names = [each.resolve().name for each in artifacts]
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    place = [] if device == "auto" else ["--device", device]
    words = ["qconv", "compare", *names, *asked, *flags, "--tokens", str(tokens), *place]
    return shlex.join(words)


def _lines(path: Path | None) -> list[str]:
    """The prompts of a file."""
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--prompt-file {path} cannot be read ({error}); give a file of UTF-8 text"
        ) from error
    prompts = [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UsageError(f"--prompt-file {path} holds no text; write one prompt on each line")
    return prompts


def _turn(name: str, number: int, count: int) -> None:
    say(f"{number + 1} of {count}  {name}")
