"""Every error qconv raises on purpose, and the exit code each family means.

    QconvError                     what a caller catches
    ├── UsageError            2    the command or call itself is wrong (unknown target, bad option)
    │   └── OutputExists      2    the output is already there, or is the input
    ├── UnreadableInput       3    a source that is missing, damaged or hostile
    ├── Unsupported           4    a sound source or request that qconv cannot serve
    │   ├── UnsupportedGrid   4    a tensor's shape or values do not suit the grid
    │   └── UnusedTensors     4    source tensors that the target has no place for
    ├── NotEnoughResources    5    disk, RAM or VRAM
    ├── GateFailed            6    a gate failed, or could not be measured
    └── BrokenPlugin          7    a plugin the command needs is broken

A message names the thing, its value, the rule it breaks and the next step.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BrokenPlugin",
    "GateFailed",
    "NotEnoughResources",
    "OutputExists",
    "QconvError",
    "UnreadableInput",
    "Unsupported",
    "UnsupportedGrid",
    "UnusedTensors",
    "UsageError",
]


class QconvError(Exception):
    """Root of all errors that speak to the user; ``exit_code`` is the process's exit code."""

    exit_code: ClassVar[int] = 1


class UsageError(QconvError):
    """The command or call is wrong: an unknown target, a bad option, a contradiction."""

    exit_code = 2


class OutputExists(UsageError):
    """The output path is taken, or is the input itself."""


class UnreadableInput(QconvError):
    """A source file is missing, truncated, malformed or hostile."""

    exit_code = 3


class Unsupported(QconvError):
    """The input is sound, but qconv cannot serve it (architecture, format, grid)."""

    exit_code = 4


class UnsupportedGrid(Unsupported):
    """A tensor's shape or values do not suit the grid it was to land on."""


class UnusedTensors(Unsupported):
    """The checkpoint holds tensors that the target has no place for."""


class NotEnoughResources(QconvError):
    """Disk, RAM or VRAM does not suffice."""

    exit_code = 5


class GateFailed(QconvError):
    """A gate failed, or what it asks for was not measured."""

    exit_code = 6


class BrokenPlugin(QconvError):
    """A plugin that this command needs could not be loaded or broke its contract."""

    exit_code = 7
