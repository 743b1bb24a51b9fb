"""Runs a command line and turns however it ends into messages and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

import typer

from ._app import build_app
from ._default_command import DEFAULT, with_command
from ._failures import PIPE_CLOSED, WRONG_USAGE, Failure, Terminated, explain
from ._memory import leave_garbage, spare_the_allocator
from ._output import (
    abandon_stdout,
    logged_to_stderr,
    replace_closed_streams,
    say,
    tolerate_any_text,
    write_json,
)

#: Commands that write artifacts, and go on where they were interrupted.
_RESUMING = {DEFAULT, "transcode"}


def main() -> NoReturn:
    """The ``qconv`` program."""
    replace_closed_streams()
    spare_the_allocator()
    exit_code = run(sys.argv[1:])
    leave_garbage()
    sys.exit(exit_code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Returns: its exit code.
    """
    tolerate_any_text()
    command = typer.main.get_command(build_app())
    words = list(arguments)
    try:
        with _terminated_like_interrupted(), logged_to_stderr():
            words = _named(command, arguments)
            exit_code = _invoke(command, [*words] or ["--help"])  # Typer empties its list
            _flush()
            return exit_code if words else WRONG_USAGE
    except BrokenPipeError:
        abandon_stdout()
        return PIPE_CLOSED
    except BaseException as error:  # noqa: BLE001 - whatever happens becomes an exit code
        return _report(error, words)


def _named(command: object, arguments: Sequence[str]) -> list[str]:
    """The arguments with their command in front."""
    commands = getattr(command, "commands", {})
    return with_command(
        arguments,
        commands=commands,
        own_options={"--help", "-h", "--version"},
        valued_options={
            name
            for option in commands[DEFAULT].params
            if not getattr(option, "is_flag", False)
            for name in option.opts
            if name.startswith("-")
        },
    )


def _invoke(command: object, words: list[str]) -> int:
    """Parse and call, without the handling of errors and signals that Typer would put around it."""
    try:
        with command.make_context("qconv", words) as context:  # type: ignore[attr-defined]
            command.invoke(context)  # type: ignore[attr-defined]
    except typer.Exit as done:
        return done.exit_code
    return 0


def _report(error: BaseException, words: Sequence[str]) -> int:
    if isinstance(error, SystemExit):  # a library's doing: qconv itself never raises it
        error = RuntimeError(f"something called sys.exit({error.code!r})")
    failure = explain(error, writes=bool(_RESUMING & set(words[:1])))
    try:
        _tell(failure, error, words)
        _flush()
    except OSError:  # nobody reads any more: the exit code still tells
        abandon_stdout()
    return failure.exit_code


def _tell(failure: Failure, error: BaseException, words: Sequence[str]) -> None:
    debug = _given("--debug", words) or os.environ.get("QCONV_DEBUG", "") not in {"", "0"}
    if debug:
        say("".join(traceback.format_exception(error)).rstrip())
    say(f"{failure.label}: {failure.message}")
    if failure.bug:
        how = "" if debug else "; run it again with --debug to see where"
        say(f"this is a bug in qconv{how}; please report it")
    if _given("--json", words):
        write_json(failure.to_json())


def _given(option: str, words: Sequence[str]) -> bool:
    """Whether a flag was given, even when the rest could not be parsed."""
    end = words.index("--") if "--" in words else len(words)
    return option in words[:end]


def _flush() -> None:
    """Write what is buffered while errors can still be told."""
    if sys.stdout is not None:
        sys.stdout.flush()


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM raise, so that it cleans up as Ctrl-C does; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield
        return

    def terminate(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
