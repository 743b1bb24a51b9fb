"""What the README shows can be typed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import qconv.errors
from qconv.errors import QconvError

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (qconv .*)$", README, flags=re.MULTILINE)


def test_the_readme_shows_every_command():
    assert {"plan", "inspect", "plugins"} <= {command.split()[1] for command in COMMANDS}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_readmes_commands_run(command, smollm2_wide, tmp_path):
    (tmp_path / ".models").symlink_to(smollm2_wide.parent)
    words = [sys.executable, "-m", "qconv", *command.split()[1:]]
    if "--method" in words:
        words += ["--windows", "2"]  # as the default of more, in a fraction of the time
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)


def test_every_error_has_an_exit_code_the_readme_explains():
    table = set(re.findall(r"^\| (\d+) \|", README, flags=re.MULTILINE))
    errors = [getattr(qconv.errors, name) for name in qconv.errors.__all__]
    assert {str(error.exit_code) for error in errors if error is not QconvError} <= table


def test_every_target_in_the_readme_exists():
    from qconv._host import load_plugins

    host = load_plugins()
    for target in re.findall(r"`((?:gguf|onnx|safetensors):\w+)`", README):
        assert host.resolve_target(target).label == target


def test_links_into_the_project_lead_somewhere():
    for link in re.findall(r"\]\(((?!http|#)[^)]+)\)", README):
        assert (Path(__file__).parents[1] / link).exists(), link
