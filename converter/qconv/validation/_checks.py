"""Checks that plugins bring, run on an artifact and what it should be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.errors import BrokenPlugin
from qconv.plugin import TensorInfo
from qconv.validation._bytes import expected_rows

if TYPE_CHECKING:
    import torch

    from qconv._host import Host
    from qconv._sources import OpenedSource
    from qconv.validation._matching import Match


@dataclass(frozen=True, slots=True)
class Expected:
    """What an artifact's tensors should be: an :class:`qconv.plugin.ArtifactReader`.

    Memory: the tensor that is read, in float32.
    """

    match: Match
    source: OpenedSource

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every planned tensor, in float32."""
        return {
            plan.name: TensorInfo(
                name=plan.name, shape=plan.shape, dtype="F32", nbytes=4 * job.rows * job.columns
            )
            for job, plan in self.match.jobs()
        }

    def read(self, name: str) -> torch.Tensor:
        """The source's values in the artifact's shape and order: float32."""
        job, plan = next(each for each in self.match.jobs() if each[1].name == name)
        return expected_rows(self.source, job, plan, 0, job.rows).float().reshape(plan.shape)


def plugin_faults(host: Host, match: Match, source: OpenedSource) -> Iterator[str]:
    """What the checks of all plugins find, each sentence after its check's name.

    Raises:
        BrokenPlugin: a check cannot be loaded, or fails itself.
    """
    for spec in host.checks:
        check = host.check(spec.name)
        try:
            found = list(check.faults(source.model, match.reader, Expected(match, source)))
        except Exception as error:
            owner = host.owner(spec)
            raise BrokenPlugin(
                f"{owner.label}: plugin author: check {spec.name!r} fails: "
                f"{type(error).__name__}: {error}; QCONV_DISABLE_PLUGINS={owner.entry_point} "
                "leaves the plugin out"
            ) from error
        yield from (f"{spec.name}: {fault}" for fault in found)
