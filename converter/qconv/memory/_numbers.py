"""Numbers out of configs, which are foreign input: whole, positive, and of sane size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qconv.errors import UnreadableInput

#: Beyond any model; keeps products of a few of them small.
_LARGEST = 1 << 40


class Numbers:
    """Looks numbers up by name, under any of the names that they go by.

    where: what is read, for messages
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self._where = values, where

    def find(self, *names: str) -> int | None:
        """The first of ``names`` that holds a number; None where none does.

        Raises:
            UnreadableInput: it holds something else, or a number no model has.
        """
        for name in names:
            value = self._values.get(name)
            if value is not None:
                return self.whole(name, value)
        return None

    def need(self, *names: str) -> int:
        """As :meth:`find`.

        Raises:
            UnreadableInput: also where none holds one.
        """
        found = self.find(*names)
        if found is None:
            raise UnreadableInput(
                f"{self._where}: {names[0]!r} is missing, on which memory depends; "
                "get the file anew from the model's publisher"
            )
        return found

    def whole(self, name: str, value: object) -> int:
        """``value``, found under ``name``, as a number from 0 up.

        Raises:
            UnreadableInput: it is none.
        """
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LARGEST:
            raise UnreadableInput(
                f"{self._where}: {name!r} is {value!r}, but must be a whole number from 0 up; "
                "get the file anew from the model's publisher"
            )
        return value

    def largest(self, *names: str) -> int | None:
        """As :meth:`find`; of a list, one number per layer, the largest."""
        for name in names:
            value = self._values.get(name)
            if isinstance(value, Sequence) and not isinstance(value, str) and value:
                return max(self.whole(name, each) for each in value)
        return self.find(*names)

    def period(self, name: str, usual: int) -> int:
        """A number from 1 up, ``usual`` where there is none.

        Raises:
            UnreadableInput: it is 0, or no number.
        """
        found = self.find(name)
        if found == 0:
            raise UnreadableInput(
                f"{self._where}: {name!r} is 0, but counts layers; "
                "get the file anew from the model's publisher"
            )
        return usual if found is None else found

    def indices(self, name: str) -> set[int]:
        """The layers that a list names; none where there is no list.

        Raises:
            UnreadableInput: it is no list of numbers.
        """
        value = self._values.get(name) or ()
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise UnreadableInput(
                f"{self._where}: {name!r} is {value!r}, but must list layers; "
                "get the file anew from the model's publisher"
            )
        return {self.whole(name, each) for each in value}

    def per_layer(self, layers: int, *names: str) -> list[int] | None:
        """One number per layer: written one by one, or once for all; None where there is none.

        Raises:
            UnreadableInput: of another length than there are layers, or no numbers.
        """
        for name in names:
            value = self._values.get(name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                if len(value) != layers:
                    raise UnreadableInput(
                        f"{self._where}: {name!r} lists {len(value)} layers, but there are "
                        f"{layers}; get the file anew from the model's publisher"
                    )
                return [self.whole(name, each) for each in value]
            if value is not None:
                return [self.whole(name, value)] * layers
        return None
