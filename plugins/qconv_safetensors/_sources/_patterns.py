"""Regular expressions of a config.json, perhaps a hostile one: none may match for ever."""

from __future__ import annotations

import re

from qconv.errors import UnreadableInput

from ._section import shown

#: Repetitions without end in one pattern: each makes matching slower by the length of a name.
_MOST_REPETITIONS = 5
#: What may not be counted as syntax: escaped characters, and classes of characters.
_LITERAL = re.compile(r"\\.|\[\^?\]?[^\]]*\]", re.DOTALL)
_REPETITION = re.compile(r"[*+]|\{\d*,\}|\{\d{3,}")


def check_pattern(where: str, pattern: str) -> None:
    """Refuse what is no regular expression, or one that could take for ever.

    where: where it stands, for messages

    Raises:
        UnreadableInput: it is either.
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UnreadableInput(
            f"{where}: {shown(pattern)} is no regular expression ({error}); "
            "get config.json anew from the model's publisher, or correct it"
        ) from error
    bare = _LITERAL.sub("x", pattern)
    if _nested(bare) or len(_REPETITION.findall(bare)) > _MOST_REPETITIONS:
        raise UnreadableInput(
            f"{where}: {shown(pattern)} nests repetitions or has more than {_MOST_REPETITIONS}, "
            "and could match for ever; name the modules in simpler patterns"
        )


def _nested(bare: str) -> bool:
    """Whether a group that repeats something is repeated itself: the classic exponential case."""
    repeats = [False]  # of each open group, outermost first
    for at, character in enumerate(bare):
        if character == "(":
            repeats.append(False)
        elif _REPETITION.match(bare, at):
            repeats[-1] = True
        elif character == ")":
            inner = repeats.pop()
            if inner and bare[at + 1 : at + 2] in {"*", "+", "{"}:
                return True
            repeats[-1] = repeats[-1] or inner
    return False
