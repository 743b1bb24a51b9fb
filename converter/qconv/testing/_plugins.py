"""Checks a whole plugin as the host does when it loads it."""

from __future__ import annotations

from qconv.errors import BrokenPlugin

from ._failed import ConformanceError, require


def check_plugin(plugin: object) -> None:
    """Register a plugin's module, collect what it offers, and load all of it.

    Raises:
        ConformanceError: the host would list the plugin as broken, or could not load what it
            offers.
    """
    from qconv._host import host_of

    host = host_of(plugin, getattr(plugin, "__name__", type(plugin).__name__))
    (record,) = host.listing()
    require(record.status == "ok", f"{record.label}: {record.reason}")
    try:
        for method in host.methods:
            host.method(method.name)
        for backend in host.backends:
            host.backend(backend.name)
        for source in host.sources:
            host.source(source.name)
        for check in host.checks:
            host.check(check.name)
    except BrokenPlugin as error:
        raise ConformanceError(str(error)) from error
