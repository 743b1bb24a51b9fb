"""However a command ends: its exit code, and what it leaves on stdout and stderr."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import qconv
from qconv import errors
from qconv.cli._kept import kept_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from cli.conftest import Ran

    Cli = Callable[..., Ran]

LINE = ("m", "--to", "gguf:q8_0")


@pytest.fixture
def converting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have qconv.convert do something else."""

    def replace(action: Callable[[], Any]) -> None:
        monkeypatch.setattr(qconv, "convert", lambda *_a, **_k: action(), raising=False)

    return replace


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "QconvError"])
def test_every_error_of_ours_keeps_its_exit_code(
    qconv_cli: Cli, converting: Callable[..., None], name: str
) -> None:
    kind = getattr(errors, name)
    converting(raising(kind("tensor 'x': no")))
    ran = qconv_cli(*LINE)
    assert (ran.code, ran.out, ran.err) == (kind.exit_code, "", "error: tensor 'x': no\n")
    ran = qconv_cli(*LINE, "--json")
    error = {"type": name, "message": "tensor 'x': no", "exit_code": kind.exit_code}
    assert json.loads(ran.out) == {"error": error}


def summarised() -> None:
    """An error with one line, raised from one with more."""
    try:
        raise RuntimeError("torch says\nall of this")
    except RuntimeError as error:
        raise errors.Unsupported("'m' cannot be exported: torch says") from error


@pytest.mark.parametrize("command", ["convert", "validate"])
def test_a_report_keeps_the_whole_of_an_error(
    qconv_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(qconv, command, lambda *_a, **_k: summarised(), raising=False)
    line = ("convert", *LINE) if command == "convert" else ("validate", "a", "--against", "m")
    ran = qconv_cli(*line, "--report", str(tmp_path / "new" / "report"))
    file = tmp_path / "new" / "report" / "error.txt"
    last = "error: 'm' cannot be exported: torch says"
    assert (ran.code, ran.err) == (4, f"the whole error: {file}\n{last}\n")
    kept = file.read_text()
    assert "RuntimeError: torch says\nall of this\n" in kept
    assert kept.endswith("Unsupported: 'm' cannot be exported: torch says\n")


def test_a_report_that_cannot_be_written_hides_no_error(
    qconv_cli: Cli, converting: Callable[..., None], tmp_path: Path
) -> None:
    converting(summarised)
    (tmp_path / "file").touch()
    ran = qconv_cli(*LINE, "--report", str(tmp_path / "file" / "report"))
    assert (ran.code, ran.err.count("\n")) == (4, 2)
    assert "warning: the error could not be kept in" in ran.err
    assert ran.err.endswith("error: 'm' cannot be exported: torch says\n")


def test_an_error_with_bytes_that_are_no_text_is_kept(
    qconv_cli: Cli, converting: Callable[..., None], tmp_path: Path
) -> None:
    def fail() -> None:
        raise errors.Unsupported("'caf\udce9.gguf' cannot be converted")

    converting(fail)
    ran = qconv_cli(*LINE, "--report", str(tmp_path))
    assert (ran.code, "cannot be converted" in ran.err) == (4, True)
    assert r"'caf\udce9.gguf' cannot" in (tmp_path / "error.txt").read_text()


def test_an_error_of_before_does_not_stay_beside_a_success(tmp_path: Path) -> None:
    (tmp_path / "error.txt").write_text("of yesterday")
    with kept_in(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    with kept_in(tmp_path / "new"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 5, "error: out of memory; lower --threads"),
        (OSError(errno.ENOSPC, "No space", "out/x"), 5, "error: the disk is full for 'out/x'"),
        (
            OSError(errno.EDQUOT, "Quota"),
            5,
            r"error: the disk is full under the standard output \(Quota\)",
        ),
        (KeyboardInterrupt(), 130, "interrupted: nothing was written under its final name; run"),
        (ValueError("odd"), 1, "error: ValueError: odd\nthis is a bug in qconv; run it again with"),
        (RecursionError(), 1, "error: RecursionError\nthis is a bug in qconv"),
        (SystemExit(0), 1, r"something called sys.exit\(0\)"),
    ],
)
def test_other_failures_have_their_code_and_message(
    qconv_cli: Cli, converting: Callable[..., None], error: BaseException, code: int, message: str
) -> None:
    converting(raising(error))
    ran = qconv_cli(*LINE)
    assert (ran.code, ran.out) == (code, "")
    assert re.search(message, ran.err)
    assert "Traceback" not in ran.err
    document = json.loads(qconv_cli(*LINE, "--json").out)
    assert document["error"]["exit_code"] == code


def test_debug_shows_the_traceback(
    qconv_cli: Cli, converting: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    converting(raising(ValueError("odd")))
    assert "Traceback" in qconv_cli(*LINE, "--debug").err
    monkeypatch.setenv("QCONV_DEBUG", "1")
    assert "in raising" not in qconv_cli(*LINE).out
    assert "Traceback" in qconv_cli(*LINE).err
    monkeypatch.setenv("QCONV_DEBUG", "0")
    assert "Traceback" not in qconv_cli(*LINE).err


def test_commands_that_write_nothing_promise_no_resume(
    qconv_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_a: object, **_k: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(qconv, "plan", interrupted, raising=False)
    ran = qconv_cli("plan", *LINE)
    assert (ran.code, ran.err) == (130, "interrupted: nothing was written\n")


def test_usage_errors_are_json_too(qconv_cli: Cli) -> None:
    ran = qconv_cli("m", "--json", "--bogus")
    error = json.loads(ran.out)["error"]
    assert (ran.code, error["type"], error["exit_code"]) == (2, "UsageError", 2)
    assert ran.err.startswith("error: No such option")


def test_an_argument_that_looks_like_json_is_an_argument(qconv_cli: Cli) -> None:
    assert qconv_cli("--to", "a:b", "--", "one", "--json").out == ""


def test_prints_of_libraries_do_not_reach_stdout(
    qconv_cli: Cli, converting: Callable[..., None]
) -> None:
    def chatty() -> None:
        print("chatter")
        raise errors.Unsupported("no")

    converting(chatty)
    ran = qconv_cli(*LINE, "--json")
    assert "chatter" in ran.err
    assert set(json.loads(ran.out)) == {"error"}


def test_the_log_goes_to_stderr(qconv_cli: Cli, converting: Callable[..., None]) -> None:
    def logging_then_failing() -> None:
        logging.getLogger("qconv").warning("plugin '%s': hook failed", "x")
        raise errors.Unsupported("no")

    converting(logging_then_failing)
    assert qconv_cli(*LINE).err == "warning: plugin 'x': hook failed\nerror: no\n"
    assert logging.getLogger("qconv").handlers == []


def test_names_cannot_steer_the_terminal(qconv_cli: Cli, converting: Callable[..., None]) -> None:
    converting(raising(errors.UnreadableInput("tensor '\x1b[2J\r[bold]x' is damaged")))
    assert qconv_cli(*LINE).err == "error: tensor '\\x1b[2J\\r[bold]x' is damaged\n"


PROGRAM = """
import sys, time
import qconv
from qconv.cli import main

def convert(*args, **kwargs):
    try:
        print("converting", file=sys.stderr, flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", file=sys.stderr, flush=True)

qconv.convert = convert
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_signals_clean_up_and_leave_with_their_code(number: int, code: int, word: str) -> None:
    command = [sys.executable, "-c", PROGRAM, *LINE]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "converting\n"
        process.send_signal(number)
        err = process.stderr.read()
        assert process.wait() == code
    assert err.startswith(f"cleaned up\n{word}: nothing was written under its final name")


def qconv_process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from qconv.cli import main; main()", *arguments],
        check=False,
        text=True,
        stderr=subprocess.PIPE,
        **options,
    )


def test_a_closed_pipe_is_no_error_to_talk_about() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = qconv_process("plugins", stdout=writing)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
def test_a_full_disk_under_stdout_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        ran = qconv_process("plugins", stdout=full)
    assert ran.returncode == 5
    assert ran.stderr.startswith("error: the disk is full")


SHELL_CLOSES = """
import os, sys
for number in (0, 1, 2):
    os.close(number)
os.execv(sys.executable, [sys.executable, "-c", '''
import os, sys
import qconv
from qconv.cli import main
def plan(*args, **kwargs):
    with open(sys.argv[-1], "wb") as file:
        file.write(str(file.fileno()).encode())
    os.write(1, b"a library prints"), os.write(2, b"a library warns"), print("so does Python")
    raise qconv.errors.UnreadableInput("no")
qconv.plan = plan
main()
''', "plan", "m", "--to", "gguf:q8_0", "--out", sys.argv[1]])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such numbers")
def test_closed_streams_do_not_lend_their_numbers_to_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    ran = subprocess.run([sys.executable, "-c", SHELL_CLOSES, str(file)], check=False)
    assert ran.returncode == 3
    assert int(file.read_bytes()) > 2


def test_an_ascii_terminal_shows_what_it_can() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    ran = qconv_process(
        "modell-\u00e4", "--to", "nowhere:\u00e4", stdout=subprocess.PIPE, env=environment
    )
    assert ran.returncode == 2
    assert "nowhere:\\xe4" in ran.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["convert", "--help"], ["plugins", "--json"]])
def test_help_and_plugins_load_no_heavy_library(arguments: list[str]) -> None:
    program = f"""
import sys
from qconv.cli._run import run
code = run({arguments!r})
heavy = {{"torch", "numba", "transformers", "gguf", "numpy", "rich", "tokenizers"}}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], check=False, text=True, capture_output=True
    )
    assert (ran.returncode, ran.stderr) == (0, "[]\n")
