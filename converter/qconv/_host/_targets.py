"""Reads targets as people write them: ``gguf:q4km,search=ggml``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qconv.errors import UsageError

from ._names import closest, listing, normalise
from ._options import read_option

if TYPE_CHECKING:
    from qconv.plugin import BackendSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A format of a backend, by its own spelling, and the options given for it."""

    backend: BackendSpec
    format: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """``backend:format``, e.g. ``gguf:q4_k_m``."""
        return f"{self.backend.name}:{self.format}"


def split_target(text: str) -> tuple[str, str, tuple[str, ...]]:
    """Backend, format (empty when there is no colon) and options of a target as written."""
    head, *options = text.split(",")
    backend, _, format_name = head.partition(":")
    return backend.strip(), format_name.strip(), tuple(options)


def make_target(text: str, spec: BackendSpec, backends: Iterable[BackendSpec]) -> Target:
    """The target that ``text`` means, ``spec`` being the backend it names.

    backends: all of them, for suggestions

    Raises:
        UsageError: no such format or option; it names those that exist.
    """
    _, wanted, options = split_target(text)
    formats = {normalise(item.name): item.name for item in spec.formats}
    if not wanted:
        raise UsageError(
            f"target '{text}' names no format; {_offers(spec)} "
            f"(write e.g. {spec.name}:{spec.formats[0].name})"
        )
    if normalise(wanted) not in formats:
        raise UsageError(unknown_target(text, backends, within=spec))
    return Target(
        backend=spec,
        format=formats[normalise(wanted)],
        options=_read_options(text, spec, options),
    )


def unknown_target(
    text: str, backends: Iterable[BackendSpec], within: BackendSpec | None = None
) -> str:
    """The message for a target that does not exist, with what was probably meant.

    within: the backend whose format is unknown; None when the backend itself is
    """
    head = text.split(",", maxsplit=1)[0].strip()
    if within is not None:  # the backend is right: its name must not count as likeness
        names = [item.name for item in within.formats]
        match = closest(head.partition(":")[2], names)
        rest = f"did you mean {within.name}:{match}?" if match else _offers(within)
        return f"unknown target '{head}'; {rest}"
    backends = tuple(backends)
    labels = [f"{spec.name}:{item.name}" for spec in backends for item in spec.formats]
    bare = [label for label in labels if normalise(label.partition(":")[2]) == normalise(head)]
    match = bare[0] if bare else closest(head, labels)
    if match:
        return f"unknown target '{head}'; did you mean {match}?"
    return f"unknown target '{head}'; backends: {listing(spec.name for spec in backends)}"


def _offers(spec: BackendSpec) -> str:
    return f"{spec.name} offers: {listing(item.name for item in spec.formats)}"


def _read_options(text: str, spec: BackendSpec, written: Iterable[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in written:
        name, value = read_option(
            f"target '{text}'", spec.name, item, spec.options, already=options
        )
        options[name] = value
    return options
