"""Plans formats one after the other, near enough to predict memory by."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qconv.errors import UsageError

if TYPE_CHECKING:
    from qconv._host import Host, Target
    from qconv.memory._subject import Subject
    from qconv.planning import TargetPlan
    from qconv.plugin import Backend

#: Planning needs some number; nothing is read.
_THREADS = 1


class Planner:
    """Asks backends for plans, each backend one instance: they keep what all their formats need.

    ONNX's exports a model's graph, which takes longer than all the rest.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._backends: dict[str, Backend] = {}

    def plan(self, subject: Subject, target: Target) -> TargetPlan:
        """What ``target`` would write, rounding to nearest.

        Raises:
            QconvError: the backend cannot write it, and says why.
        """
        from qconv._sources import whole_tensor
        from qconv.planning import build_plan, source_facts

        source = subject.source
        if source is None:
            raise UsageError(f"{subject.path}: an ONNX graph cannot become {target.label} here")
        name = target.backend.name
        if name not in self._backends:
            self._backends[name] = self._host.backend(name)
        plan = build_plan(
            source=subject.path,
            out=Path(),
            model=source.model,
            method="rtn",
            streams=True,
            targets=[(target.label, self._backends[name], target.format, target.options)],
            allow_unused=True,
            threads=_THREADS,
            max_ram=None,
            warnings=(),
            steps=("rtn",),
            facts=source_facts(source, self._host, _THREADS),
            read=partial(whole_tensor, source),
            exact=False,
        )
        return plan.targets[0]
