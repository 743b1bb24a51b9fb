"""What is known of one plugin: who made it, what it offers, or why it is broken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from qconv.plugin import BackendSpec, CheckSpec, MethodSpec, SourceSpec

Spec = MethodSpec | BackendSpec | SourceSpec | CheckSpec
Status = Literal["ok", "broken", "disabled"]


def kind_of(spec: Spec) -> str:
    """What people call it: method, backend, source or check."""
    if isinstance(spec, MethodSpec):
        return "method"
    if isinstance(spec, BackendSpec):
        return "backend"
    return "source" if isinstance(spec, SourceSpec) else "check"


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginRecord:
    """One entry point of the group ``qconv.plugins``.

    reason: why it is broken or disabled; empty when it is ok
    claimed: kind and name of the specs it showed before it broke
    """

    distribution: str
    version: str
    entry_point: str
    status: Status
    reason: str = ""
    methods: tuple[MethodSpec, ...] = ()
    backends: tuple[BackendSpec, ...] = ()
    sources: tuple[SourceSpec, ...] = ()
    checks: tuple[CheckSpec, ...] = ()
    claimed: tuple[tuple[str, str], ...] = ()

    @property
    def specs(self) -> tuple[Spec, ...]:
        """All it offers."""
        return (*self.methods, *self.backends, *self.sources, *self.checks)

    @property
    def label(self) -> str:
        """Who to ask: entry point, distribution and version."""
        return f"plugin '{self.entry_point}' of {self.distribution} {self.version}"

    def to_json(self) -> dict[str, Any]:
        """The record as JSON-able values."""
        return {
            "distribution": self.distribution,
            "version": self.version,
            "entry_point": self.entry_point,
            "status": self.status,
            "reason": self.reason,
            "methods": [{"name": spec.name, "summary": spec.summary} for spec in self.methods],
            "backends": [_backend_to_json(spec) for spec in self.backends],
            "sources": [{"name": spec.name, "summary": spec.summary} for spec in self.sources],
            "checks": [{"name": spec.name, "summary": spec.summary} for spec in self.checks],
        }


def _backend_to_json(spec: BackendSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "summary": spec.summary,
        "formats": [{"name": item.name, "summary": item.summary} for item in spec.formats],
        "options": [
            {"name": item.name, "summary": item.summary, "choices": list(item.choices)}
            for item in spec.options
        ],
    }
