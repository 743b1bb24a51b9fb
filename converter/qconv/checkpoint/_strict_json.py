"""JSON from untrusted files: objects only, no duplicate keys, bounded depth and numbers."""

from __future__ import annotations

import json
from typing import Any

from qconv.checkpoint._faults import MAX_HEADER_NBYTES, shown
from qconv.errors import UnreadableInput

#: Real files hold 31 digits (a `model_max_length`); Python spends quadratic time on a million.
_MAX_DIGITS = 300


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object.

    data: UTF-8 text of at most 100 MB
    where: what the text is, to begin an error with: a path, or a path and ``header``

    Raises:
        UnreadableInput: anything but a sound JSON object.
    """
    if len(data) > MAX_HEADER_NBYTES:
        raise UnreadableInput(
            f"{where}: {len(data)} bytes of JSON; at most {MAX_HEADER_NBYTES} are read, "
            "split the file or remove what does not belong there"
        )
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_int=_bounded_integer
        )
    except UnicodeDecodeError as error:
        raise UnreadableInput(
            f"{where}: byte {error.start} is not UTF-8; the file is damaged, get it anew"
        ) from error
    except RecursionError as error:
        raise UnreadableInput(
            f"{where}: JSON is nested too deep; the file is damaged or hostile, get it anew"
        ) from error
    except ValueError as error:
        raise UnreadableInput(
            f"{where}: not valid JSON: {error}; the file is damaged, get it anew"
        ) from error
    if not isinstance(value, dict):
        raise UnreadableInput(
            f"{where}: holds a JSON {type(value).__name__}, but must hold an object; get it anew"
        )
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {shown(twice)} appears twice in one object")
    return found


def _bounded_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"integer of {len(digits)} digits")
    return int(digits)
