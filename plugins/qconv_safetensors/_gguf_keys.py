"""The metadata of a GGUF file, read strictly: every value is checked where it is used."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from qconv.errors import UnreadableInput

from ._sources._section import shown

_T = TypeVar("_T")


class Keys:
    """Metadata by key. Every method raises UnreadableInput for a value that breaks its rule."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Wrap ``ModelInfo.metadata`` of a GGUF source."""
        self._metadata = metadata

    def __contains__(self, key: str) -> bool:
        return key in self._metadata

    def under(self, prefix: str) -> Iterator[str]:
        """The keys that begin with ``prefix``, sorted."""
        return (key for key in sorted(self._metadata) if key.startswith(prefix))

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        return value if isinstance(value, str) else self.refuse(key, "a string")

    def whole(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(key, f"a whole number from {low} to {high}")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0, as its shortest decimal."""
        value = self._value(key, default)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            self.refuse(key, "a number above 0")
        return shortest(float(value))

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        return value if isinstance(value, bool) else self.refuse(key, "true or false")

    def texts(self, key: str) -> tuple[str, ...]:
        """An array of strings; empty when absent."""
        return self._all(key, str, "strings")

    def wholes(self, key: str) -> tuple[int, ...]:
        """An array of whole numbers; empty when absent."""
        return self._all(key, int, "whole numbers")

    def floats(self, key: str) -> tuple[float, ...]:
        """An array of floats; empty when absent."""
        return self._all(key, float, "floats")

    def refuse(self, key: str, rule: str) -> NoReturn:
        """Raise UnreadableInput: the value of ``key`` is not ``rule``."""
        raise UnreadableInput(
            f"the GGUF file's {key} is {shown(self._value(key, None))}, but must be {rule}; "
            "convert the model again"
        )

    def _all(self, key: str, kind: type[_T], rule: str) -> tuple[_T, ...]:
        values = self._value(key, ())
        if not isinstance(values, (tuple, list)) or not all(type(each) is kind for each in values):
            self.refuse(key, f"an array of {rule}")
        return tuple(values)

    def _value(self, key: str, default: object) -> Any:  # noqa: ANN401 -- whatever the file holds
        entry = self._metadata.get(key)
        return default if entry is None else entry.value


def shortest(value: float) -> float:
    """The decimal of fewest digits that is the same float32: 1e-05 for 9.999999747378752e-06."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if _float32(short) == _float32(value):
            return short
    return value


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return b""
