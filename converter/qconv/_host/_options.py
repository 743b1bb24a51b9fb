"""Reads one option as people write it after a target or a method step: ``name=value``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from qconv.errors import UsageError

from ._names import did_you_mean, listing, normalise

if TYPE_CHECKING:
    from qconv.plugin import OptionSpec


def read_option(
    where: str,
    owner: str,
    item: str,
    known: Sequence[OptionSpec],
    *,
    already: Collection[str],
) -> tuple[str, str]:
    """Name and value of one option, by the owner's own spelling.

    where: what it was written in, for messages
    owner: the backend or method it belongs to
    already: names of options that were given before

    Raises:
        UsageError: it is no option, or none of the owner's, given twice, or has no such choice.
    """
    name, equals, value = (part.strip() for part in item.partition("="))
    if not (name and equals and value):
        raise UsageError(
            f"{where}: '{item.strip()}' is not an option; write name=value, with a comma "
            "before each"
        )
    option = {normalise(option.name): option for option in known}.get(normalise(name))
    if option is None:
        names = [item.name for item in known]
        offers = f"(options: {listing(names)})" if names else "(it has none)"
        raise UsageError(
            f"{where}: {owner} has no option '{name}'{did_you_mean(name, names)} {offers}"
        )
    if option.name in already:
        raise UsageError(f"{where}: option '{option.name}' is given twice; give it once")
    return option.name, _check_choice(where, option, value)


def _check_choice(where: str, option: OptionSpec, value: str) -> str:
    if not option.choices:
        return value
    choices = {normalise(choice): choice for choice in option.choices}
    if normalise(value) not in choices:
        raise UsageError(
            f"{where}: option '{option.name}' cannot be '{value}'"
            f"{did_you_mean(value, option.choices)} (choices: {listing(option.choices)})"
        )
    return choices[normalise(value)]
