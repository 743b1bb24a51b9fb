"""Runs command lines in this process."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from qconv.cli._run import run

#: What :mod:`qconv.cli._progress` writes where there is no terminal.
_PROGRESS = re.compile(r"converting |preparing the model and | {0,3}\d+%  ")


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def told(self) -> list[str]:
        """The lines on stderr, but for how far it is, which a slow machine tells."""
        return [line for line in self.err.splitlines() if not _PROGRESS.match(line)]


@pytest.fixture
def qconv_cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Run ``qconv`` with these arguments: exit code, stdout and stderr."""
    monkeypatch.delenv("QCONV_DEBUG", raising=False)
    monkeypatch.setenv("QCONV_DISABLE_PLUGINS", "*")

    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        code = run(arguments)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call
