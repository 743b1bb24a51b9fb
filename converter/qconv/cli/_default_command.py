"""Lets ``qconv MODEL --to TARGET`` stand for ``qconv convert MODEL --to TARGET``."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from qconv.errors import UsageError

DEFAULT = "convert"


def with_command(
    arguments: Sequence[str],
    *,
    commands: Collection[str],
    own_options: Collection[str],
    valued_options: AbstractSet[str],
) -> list[str]:
    """``arguments`` with their command in front.

    commands: names of all commands
    own_options: options that stand without a command, e.g. ``--version``
    valued_options: options followed by a value, which is therefore not the command

    Raises:
        UsageError: the first word is no file, but nearly a command.
    """
    if not arguments or arguments[0] in own_options:
        return list(arguments)
    index = _first_word(arguments, valued_options)
    if index is not None and arguments[index] in commands:
        return [arguments[index], *arguments[:index], *arguments[index + 1 :]]
    if index is not None and not valued_options & set(arguments):
        _refuse_misspelt(arguments[index], commands)
    return [DEFAULT, *arguments]


def _refuse_misspelt(word: str, commands: Collection[str]) -> None:
    close = difflib.get_close_matches(word, sorted(commands), n=1, cutoff=0.75)
    if close and not Path(word).exists():
        raise UsageError(f"there is no command or file '{word}'; did you mean 'qconv {close[0]}'?")


def _first_word(arguments: Sequence[str], valued_options: Collection[str]) -> int | None:
    """Index of the first argument that is neither an option nor an option's value."""
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        if argument == "--":
            return None
        if not argument.startswith("-") or argument == "-":
            return index
        index += 2 if argument in valued_options else 1
    return None
