"""The part of a config.json that is about text, opened for reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qconv.memory._numbers import Numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """A decoder's config.

    values: as written, without nulls, with the defaults of its family
    numbers: the same, to be looked up in
    family: its ``model_type``
    """

    values: Mapping[str, Any]
    numbers: Numbers
    family: str
