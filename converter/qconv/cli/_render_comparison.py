"""Prints a comparison for people: a table of the artifacts, then their texts."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

from qconv.engines import engine_label

from ._output import printable, write_line
from ._render import _add_row, _print, _table
from ._sizes import format_bytes, format_seconds

if TYPE_CHECKING:
    from qconv.comparison import Answer, ArtifactSpoken, Comparison

_WIDTH = 96
#: What stands before the first token that is not the first artifact's; on a terminal, the rest
#: is also shown in reverse.
_PARTS = ">>"


def render_comparison(comparison: Comparison) -> None:
    """Print who ran in what, with time and memory, and what each wrote."""
    table = _table("artifact", ">size", "engine", ">ready in", ">tokens/s", ">memory")
    for each in comparison.artifacts:
        _add_row(table, *_row(each))
    _print(table)
    for each in comparison.unmeasured:
        write_line(f"unmeasured: {each.name}: {each.reason}")
    for number, prompt in enumerate(comparison.prompts):
        write_line(f'\n"{prompt}"')
        for each in comparison.artifacts:
            if each.answers:
                _write_answer(each.name, each.answers[number])


def _row(each: ArtifactSpoken) -> tuple[str, ...]:
    if each.reason is not None:
        return (each.name, format_bytes(each.nbytes), "unmeasured", "-", "-", "-")
    seconds = sum(answer.seconds for answer in each.answers)
    tokens = sum(answer.tokens for answer in each.answers)
    return (
        each.name,
        format_bytes(each.nbytes),
        engine_label(each.engine, each.version, each.device),
        "-" if each.load_seconds is None else format_seconds(each.load_seconds),
        f"{tokens / seconds:.1f}" if seconds > 0 else "-",
        "-" if each.peak_bytes is None else format_bytes(each.peak_bytes),
    )


def _write_answer(name: str, answer: Answer) -> None:
    told = f"{answer.tokens} tokens, {format_seconds(answer.seconds)}"
    parts = "" if answer.parts_at is None else f", parts at token {answer.parts_at + 1}"
    other = "" if answer.tokenized_alike else ", whose tokenizer reads the prompt otherwise"
    write_line(f"  {name}  ({told}{parts}{other})")
    for line in _lines(answer):
        print(line)  # noqa: T201 - the result; it is printable, and may hold the terminal's reverse


def _lines(answer: Answer) -> list[str]:
    """The text, folded and indented, the rest after the parting marked."""
    at = answer.parts_at_character
    text = answer.text if at is None else f"{answer.text[:at]}{_PARTS}{answer.text[at:]}"
    lines = [
        folded
        for line in printable(text).splitlines() or [""]
        for folded in textwrap.wrap(line, _WIDTH, drop_whitespace=False) or [""]
    ]
    return [f"    | {line.rstrip()}" for line in _emphasised(lines)]


def _emphasised(lines: list[str]) -> list[str]:
    """On a terminal, everything from the mark on in reverse."""
    if not _is_terminal():
        return lines
    made, marked = [], False
    for line in lines:
        before, mark, after = (line, "", "") if marked else line.partition(_PARTS)
        if marked:
            made.append(f"\x1b[7m{line}\x1b[0m")
        else:
            made.append(f"{before}\x1b[7m{after}\x1b[0m" if mark else before)
        marked = marked or bool(mark)
    return made


def _is_terminal() -> bool:
    return sys.stdout.isatty()
