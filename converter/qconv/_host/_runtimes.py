"""Engines of plugins that were written before engines were told where to compute."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from qconv.errors import Unsupported

#: What needs no telling.
_ANYWHERE = ("auto", "cpu")


def device_arguments(load: Callable[..., Any], backend: str, device: str) -> tuple[str, ...]:
    """What a backend's ``runtime`` takes beside a path and a context.

    Raises:
        Unsupported: it takes no device, but is to compute on one.
    """
    try:
        inspect.signature(load).bind("path", 1, device)
    except TypeError:
        if device in _ANYWHERE:
            return ()
        raise Unsupported(
            f"backend '{backend}' takes no device for its engine, so that it cannot be told to "
            f"compute on {device}; leave --device out, or upgrade its plugin"
        ) from None
    except ValueError:  # of what is no Python, nothing is known
        return (device,)
    return (device,)


def with_device(runtime: Any) -> Any:  # noqa: ANN401 - of a plugin
    """The engine itself; one that does not say where it computes is taken to do so on the CPU."""
    return runtime if hasattr(runtime, "device") else _OnCpu(runtime)


class _OnCpu:
    """An engine that says ``cpu`` where asked for its device, and is as it is otherwise."""

    device = "cpu"

    def __init__(self, runtime: Any) -> None:  # noqa: ANN401
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._runtime, name)

    def __enter__(self) -> Any:  # noqa: ANN401
        self._runtime.__enter__()
        return self

    def __exit__(self, *raised: object) -> Any:  # noqa: ANN401
        return self._runtime.__exit__(*raised)
