"""An example plugin for qconv: the method ``clip`` and an observer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from qconv.plugin import ConversionFinished, Event, MethodSpec, Rounder, hookimpl

__all__ = ["qconv_event", "qconv_methods"]


@hookimpl
def qconv_methods() -> Iterator[MethodSpec]:
    """Offer ``clip``."""
    yield MethodSpec(
        name="clip",
        summary="round to nearest after clipping each row's few largest weights",
        streams=True,  # a row's result depends on that row only
        load=_load,
        api_version=1,
    )


@hookimpl
def qconv_event(event: Event) -> None:
    """Log how long a conversion took."""
    if isinstance(event, ConversionFinished):
        logging.getLogger(__name__).info("converted in %.1f s", event.seconds)


def _load() -> Callable[[], Rounder]:
    # Imported here, not above: listing plugins must not import torch.
    from ._clip import Clip

    return Clip
