"""A part of config.json, read strictly: every value is checked where it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from qconv.errors import UnreadableInput

#: Longest value that a message repeats.
_SHOWN = 80


def shown(value: object) -> str:
    """``value`` for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A JSON object and where it stands. Absent keys and null are the same.

    Every method raises UnreadableInput for a value that breaks its rule.
    """

    where: str
    values: Mapping[str, Any]

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            self.refuse(key, "a string")
        return value

    def whole(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(key, f"a whole number from {low} to {high}")
        return value

    def flag(self, key: str, *, default: bool | None = None) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; none when absent."""
        value = self._value(key, [])
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            self.refuse(key, "a list of strings")
        return tuple(value)

    def wholes(self, key: str, count: int, high: int) -> tuple[int, ...] | None:
        """A list of ``count`` whole numbers from 1 to ``high``; None when absent."""
        value = self.values.get(key)
        if value is None:
            return None
        sizes = value if isinstance(value, list) else []
        if len(sizes) != count or not all(
            type(each) is int and 1 <= each <= high for each in sizes
        ):
            self.refuse(key, f"a list of {count} whole numbers from 1 to {high}")
        return tuple(sizes)

    def section(self, key: str) -> Section | None:
        """An object within; None when absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(key, "an object")
        return Section(where=f"{self.where}: {key}", values=value)

    def sections(self, key: str) -> dict[str, Section]:
        """An object of objects, by key; empty when absent."""
        inner = self.section(key)
        if inner is None:
            return {}
        return {name: found for name in inner.values if (found := inner.section(name))}

    def refuse(self, key: str, rule: str) -> NoReturn:
        """Raise UnreadableInput: the value of ``key`` is not ``rule``."""
        value = self.values.get(key)
        raise UnreadableInput(
            f"{self.where}: {key} is {shown(value)}, but must be {rule}; "
            "get config.json anew from the model's publisher, or correct it"
        )

    def _value(self, key: str, default: object) -> Any:  # noqa: ANN401 -- whatever the file holds
        value = self.values.get(key)
        return default if value is None else value
