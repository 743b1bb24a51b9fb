"""Opens a source, quantized or not: the source plugin that recognizes it decodes what is packed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qconv.checkpoint import DecodedCheckpoint, open_checkpoint
from qconv.errors import Unsupported

if TYPE_CHECKING:
    from typing import TypeAlias

    import torch

    from qconv._host import Host
    from qconv.checkpoint import FileCheckpoint
    from qconv.plugin import SourceSpec

    OpenedSource: TypeAlias = FileCheckpoint | DecodedCheckpoint


def open_source(path: str | Path, host: Host, *, require_config: bool = True) -> OpenedSource:
    """Open a checkpoint; one of a known quantized family comes as the plain one it stands for.

    One that says it is quantized, in a way nobody recognizes, comes as stored: whoever takes its
    tensors for weights must refuse it.

    require_config: as :func:`qconv.checkpoint.open_checkpoint` takes it

    Raises:
        UnreadableInput: the source is missing, malformed or hostile, or not a checkpoint.
        Unsupported: more than one family recognizes it, or its kind of the family is not decoded.
        BrokenPlugin: the plugin that reads it cannot be loaded, or breaks its contract.
    """
    stored = open_checkpoint(path, require_config=require_config)
    try:
        family = _family(path, host, stored)
        if family is None:
            return stored
        return DecodedCheckpoint(stored, host.source(family.name), family.name)
    except BaseException:
        stored.close()
        raise


def plugins_behind(source: OpenedSource, host: Host) -> tuple[str, ...]:
    """Who decodes the source, with versions; nobody where it is plain."""
    if not isinstance(source, DecodedCheckpoint):
        return ()
    return (host.owner(host.source_spec(source.family)).label,)


def whole_tensor(source: OpenedSource, name: str) -> torch.Tensor:
    """A tensor of the source, whole: float32, shape as in ``source.model``."""
    info = source.model.tensors[name]
    rows = info.numel // info.shape[-1] if info.shape else 1
    return source.read_rows(name, 0, rows).float().reshape(info.shape)


def _family(path: str | Path, host: Host, stored: FileCheckpoint) -> SourceSpec | None:
    """The one family that a checkpoint is of; None for a plain one, and where nobody knows it."""
    families = host.recognizing(stored.model)
    if len(families) > 1:
        claims = " and ".join(f"{spec.name!r} ({host.owner(spec).label})" for spec in families)
        raise Unsupported(
            f"{path}: {len(families)} sources recognize this quantized checkpoint: {claims}; "
            "leave all but one of the plugins out with QCONV_DISABLE_PLUGINS"
        )
    return families[0] if families else None
