"""Finds the entry points that name plugins: ours first, then by distribution and name."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

GROUP = "qconv.plugins"
OURS = "qconv"


class Loadable(Protocol):
    """What can give a plugin: an entry point, or a stand-in for one."""

    def load(self) -> Any:  # noqa: ANN401 - a module or an object, nobody knows of what type
        """Import the plugin and return it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An entry point not loaded yet, or a distribution whose entry points cannot be read.

    point: None when ``problem`` says why there is none
    """

    distribution: str
    version: str
    name: str
    point: Loadable | None
    problem: str = ""

    @property
    def ours(self) -> bool:
        """Whether it belongs to qconv itself."""
        return canonical(self.distribution) == OURS

    @property
    def order(self) -> tuple[bool, str, str]:
        """Ours first, then by distribution and name."""
        return (not self.ours, canonical(self.distribution), self.name)


def find_plugins() -> tuple[Found, ...]:
    """All plugins' entry points in loading order.

    Distributions are read one by one, because ``importlib.metadata.entry_points`` fails as a whole
    when the entry points of any one of them are malformed.
    """
    found: list[Found] = []
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        points = tuple(_plugins_of(distribution))
        name = canonical(points[0].distribution) if points else ""
        if name in seen:
            continue  # the same distribution further down sys.path, which Python does not import
        seen.update({name} if points else ())
        found.extend(points)
    return tuple(sorted(found, key=lambda item: item.order))


def _plugins_of(distribution: importlib.metadata.Distribution) -> Iterator[Found]:
    try:
        text = distribution.read_text("entry_points.txt") or ""
    except (OSError, ValueError):  # unreadable, or not UTF-8: it cannot be known to be a plugin
        return
    if GROUP not in text:  # spares parsing the metadata of everything else that is installed
        return
    name, version = _identity(distribution)
    try:
        points = [point for point in distribution.entry_points if point.group == GROUP]
    except Exception as error:  # noqa: BLE001 - the parser raises whatever it stumbles over
        problem = f"its entry_points.txt is malformed ({type(error).__name__})"
        yield Found(distribution=name, version=version, name="?", point=None, problem=problem)
        return
    for point in points:
        yield Found(distribution=name, version=version, name=point.name, point=point)


def _identity(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Name and version; those of the folder's name when METADATA is missing."""
    try:
        metadata = distribution.metadata
        name, version = metadata["Name"], metadata["Version"]
    except Exception:  # noqa: BLE001 - Python versions differ in what they raise here
        name, version = "", ""
    if not name:
        folder = str(getattr(distribution, "_path", "unknown")).replace("\\", "/").split("/")[-1]
        name, _, version = (
            folder.removesuffix(".dist-info").removesuffix(".egg-info").partition("-")
        )
    return str(name), str(version or "unknown")


def canonical(name: str) -> str:
    """A distribution's name as packaging compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
