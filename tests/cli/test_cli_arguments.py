"""What a command line asks of the Python API."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import qconv
from qconv.calibration import Calibration
from qconv.cli._calibration import WINDOW_LENGTH, WINDOWS
from qconv.cli._default_command import with_command
from qconv.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cli.conftest import Ran

    Cli = Callable[..., Ran]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What qconv.convert or qconv.plan was called with."""
    seen: dict[str, Any] = {}

    def fake(model: Path, to: list[str], **options: Any) -> SimpleNamespace:
        seen.update(model=model, to=to, **options)
        plan = SimpleNamespace(warnings=("mind the gap",))
        return SimpleNamespace(
            plan=plan, warnings=plan.warnings, notes=(), to_json=lambda: {"ok": True}
        )

    monkeypatch.setattr(qconv, "convert", fake, raising=False)
    monkeypatch.setattr(qconv, "plan", fake, raising=False)
    return seen


def test_defaults_are_those_of_the_api(qconv_cli: Cli, asked: dict[str, Any]) -> None:
    ran = qconv_cli("convert", "m", "--to", "gguf:q8_0", "--json")
    assert (ran.code, ran.err) == (0, "")
    observer = asked.pop("observer")
    assert callable(observer)
    assert asked == {
        "model": Path("m"),
        "to": ["gguf:q8_0"],
        "out": Path(),
        "method": "rtn",
        "calibration": None,
        "statistics": None,
        "device": "auto",
        "dtype": "auto",
        "force": False,
        "max_fallback": None,
        "allow_unused": False,
        "search": "default",
        "threads": None,
        "max_ram": None,
        "resume": True,
        "validate": True,
    }


def test_every_option_reaches_the_api(qconv_cli: Cli, asked: dict[str, Any]) -> None:
    options = "--to a:b --to c:d -o out --method x --search ggml --max-fallback 5% --allow-unused"
    text = "--calibration builtin --calibration x.txt=0.3 --windows 8 --window-length 100 --seed 7"
    text += " --sampling diverse --no-packing --min-tokens-per-expert 9"
    model = "--statistics sequential --device cpu --dtype bfloat16"
    more = f"{text} {model} --force --threads 3 --max-ram 8GiB --no-resume --no-validate -q --json"
    assert qconv_cli("m", *options.split(), *more.split()).code == 0
    del asked["observer"]
    assert asked == {
        "calibration": Calibration(
            source=("builtin", "x.txt=0.3"),
            windows=8,
            window_length=100,
            sampling="diverse",
            packing=False,
            seed=7,
            min_tokens_per_expert=9,
        ),
        "statistics": "sequential",
        "device": "cpu",
        "dtype": "bfloat16",
        "model": Path("m"),
        "to": ["a:b", "c:d"],
        "out": Path("out"),
        "method": "x",
        "force": True,
        "max_fallback": 0.05,
        "allow_unused": True,
        "search": "ggml",
        "threads": 3,
        "max_ram": 8 * 2**30,
        "resume": False,
        "validate": False,
    }


def test_settings_of_calibration_without_a_source_are_those_of_the_builtin_text(
    qconv_cli: Cli, asked: dict[str, Any]
) -> None:
    assert qconv_cli("m", "--to", "a:b", "--windows", "8", "--json").code == 0
    assert asked["calibration"] == Calibration(windows=8)


def test_the_command_line_has_the_defaults_of_the_settings() -> None:
    settings = Calibration()
    assert (settings.windows, settings.window_length) == (WINDOWS, WINDOW_LENGTH)


def test_plan_takes_the_options_of_convert(qconv_cli: Cli, asked: dict[str, Any]) -> None:
    options = "--to a:b -o out --search ggml --max-fallback 0.25 --allow-unused --force"
    assert qconv_cli("plan", "m", *options.split(), "--max-ram", "1kB", "--json").code == 0
    assert (asked["search"], asked["max_fallback"], asked["max_ram"]) == ("ggml", 0.25, 1000)


@pytest.mark.parametrize(
    "line",
    [
        "m --to a:b --json",
        "--to a:b m --json",
        "--json --to a:b m",
        "-o plan m --to a:b --json",
        "--to=a:b m --json",
        "--json convert m --to a:b",
        "--to a:b --json -- m",
    ],
)
def test_convert_is_the_command_when_none_is_named(
    qconv_cli: Cli, asked: dict[str, Any], line: str
) -> None:
    assert qconv_cli(*line.split()).code == 0
    assert (asked["model"], asked["to"]) == (Path("m"), ["a:b"])
    assert "resume" in asked


def test_inspect_reads_values_unless_told_not_to(
    qconv_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Path, bool]] = []

    def fake(path: Path, *, values: bool, progress: object) -> SimpleNamespace:
        assert progress is None  # no terminal
        seen.append((path, values))
        return SimpleNamespace(warnings=("it is odd",), to_json=lambda: {"path": "x"})

    monkeypatch.setattr(qconv, "inspect", fake, raising=False)
    ran = qconv_cli("inspect", "x", "--json")
    assert (ran.code, ran.err, json.loads(ran.out)) == (0, "warning: it is odd\n", {"path": "x"})
    assert qconv_cli("inspect", "x", "--json", "--no-values").code == 0
    assert seen == [(Path("x"), True), (Path("x"), False)]


def test_plugins_lists_ours(qconv_cli: Cli) -> None:
    document = json.loads(qconv_cli("plugins", "--json").out)
    ours = [item for item in document["plugins"] if item["distribution"] == "qconv"]
    assert {"gguf", "rtn"} <= {item["entry_point"] for item in ours}
    assert "rtn  (qconv" in qconv_cli("plugins").out


SYNTAX: dict[str, Any] = {
    "commands": ["convert", "plan", "plugins"],
    "own_options": {"--help", "--version"},
    "valued_options": {"--to", "-o"},
}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ""),
        ("--help", "--help"),
        ("--version", "--version"),
        ("m --help", "convert m --help"),
        ("plan m", "plan m"),
        ("--json plan m --to x", "plan --json m --to x"),
        ("--to plan m", "convert --to plan m"),
        ("-o plugins m", "convert -o plugins m"),
        ("-- plan", "convert -- plan"),
        ("- --to x", "convert - --to x"),
        ("--to", "convert --to"),
    ],
)
def test_the_command_goes_first(line: str, words: str) -> None:
    assert with_command(line.split(), **SYNTAX) == words.split()


def test_a_misspelt_command_is_not_taken_for_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no command or file 'plugin'; did you mean 'qconv plug"):
        with_command(["plugin"], **SYNTAX)
    model = tmp_path / "plugin"
    model.mkdir()
    assert with_command([str(model)], **SYNTAX) == ["convert", str(model)]
    assert with_command(["plugin", "--to", "x"], **SYNTAX)[0] == "convert"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("convert m", r"Missing option '--to'; see 'qconv convert --help'"),
        ("convert --to a:b", r"Missing argument 'MODEL'; see"),
        ("m --to a:b --too", r"No such option: --too"),
        ("m --to a:b --threads 0", r"Invalid value for '--threads'"),
        ("m --to a:b --threads many", r"Invalid value for '--threads'"),
        ("m --to a:b --search fast", r"Invalid value for '--search'"),
        ("m --to a:b --max-ram 8X", r"--max-ram '8X' is not a size; write e.g. 800MB, 8GiB"),
        ("m --to a:b --max-fallback 5", r"--max-fallback '5' is not a share; write a percentage"),
        ("m --to a:b other", r"unexpected extra argument"),
        ("plguins", r"did you mean 'qconv plugins'"),
    ],
)
@pytest.mark.usefixtures("asked")
def test_wrong_command_lines_leave_with_2(qconv_cli: Cli, line: str, message: str) -> None:
    ran = qconv_cli(*line.split())
    assert (ran.code, ran.out) == (2, "")
    assert re.search(r"\Aerror: .*" + message, ran.err)
    assert "Traceback" not in ran.err


def test_no_arguments_show_the_help_and_leave_with_2(qconv_cli: Cli) -> None:
    ran = qconv_cli()
    assert (ran.code, ran.err) == (2, "")
    assert "Usage: qconv" in ran.out


def test_version_is_told(qconv_cli: Cli) -> None:
    assert qconv_cli("--version").out == f"qconv {qconv.__version__}\n"


@pytest.mark.parametrize("command", ["convert", "plan", "inspect", "plugins"])
def test_every_command_has_help_with_an_example(qconv_cli: Cli, command: str) -> None:
    ran = qconv_cli(command, "--help")
    assert ran.code == 0
    assert "Examples:\n    qconv " in ran.out
    assert all(len(line) <= 80 for line in ran.out.splitlines())
