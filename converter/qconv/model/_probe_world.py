"""A block's synthetic runs: what uses its weights, and what a change of one producer does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from qconv.model._probe_channels import Reading, read
from qconv.model._probe_run import BlockCall, Factors, Run, run_synthetic
from qconv.model._probe_watch import Seen, Use, random_normal

if TYPE_CHECKING:
    import torch

    from qconv.model._topology import LinearPart

_NUMBER = re.compile(r"\d+")


class World:
    """The block with random numbers for the outputs of its linears and for its vectors.

    The vectors, norms' weights among them, and the hidden states are random too, so that no zero
    or one among the real ones can hide a channel, or make two different formulas look the same.

    deals: where dealing tokens to experts begins, in as many runs as it takes to reach all experts
    unreached: weights no token came to, as names with ``#`` for numbers
    """

    def __init__(self, call: BlockCall) -> None:
        random = random_normal("hidden states", call.hidden.shape, call.hidden.device)
        self.call = replace(call, hidden=random)
        self.parameters = call.parameters()
        self.vectors = {
            path: 0.5 + random_normal(path, tensor.shape, tensor.device).abs()
            for path, tensor in self.parameters.items()
            if tensor.dim() == 1
        }
        self.deals, self._before = self._reach_all()
        self.unreached = self._missing(self._parts(self._before))

    def _reach_all(self) -> tuple[list[int], list[Run]]:
        step = self.call.hidden.numel() // self.call.hidden.shape[-1]
        deals = [0]
        runs = [run_synthetic(self.call, parameters=self.vectors)]
        while runs[0].routed and self._missing(self._parts(runs)):
            run = run_synthetic(self.call, parameters=self.vectors, deal=deals[-1] + step)
            if self._parts([run]) <= self._parts(runs):
                break
            deals.append(deals[-1] + step)
            runs.append(run)
        return deals, runs

    @staticmethod
    def _parts(runs: Iterable[Run]) -> set[LinearPart]:
        return {use.part for run in runs for use in run.uses}

    def _missing(self, parts: set[LinearPart]) -> set[str]:
        """Fused experts of which some were not used, and unused weights like one that was."""
        used = {part.parameter for part in parts}
        alike = {_NUMBER.sub("#", path) for path in used}
        missing = {
            _NUMBER.sub("#", path)
            for path, tensor in self.parameters.items()
            if tensor.dim() >= 2 and path not in used and _NUMBER.sub("#", path) in alike
        }
        for path in used:
            experts = {part.expert for part in parts if part.parameter == path} - {None}
            if experts and len(experts) < len(self.parameters[path]):
                missing.add(_NUMBER.sub("#", path))
        return missing

    def is_unreached(self, part: LinearPart) -> bool:
        """Whether some experts like this one were given no token."""
        return _NUMBER.sub("#", part.parameter) in self.unreached

    def uses(self) -> Mapping[Use, Seen]:
        """All uses of linear weights, each as first seen, with all the pieces ever taken of it."""
        merged: dict[Use, Seen] = {}
        for run in self._before:
            for use, seen in run.uses.items():
                merged.setdefault(use, seen).row_sets.update(seen.row_sets)
        return merged

    def input_groups(self) -> tuple[tuple[LinearPart, ...], ...]:
        """Parts that were given the very same tensor."""
        groups: list[list[LinearPart]] = []
        known: set[LinearPart] = set()
        for run in self._before:
            by_identity: dict[tuple[int, ...], list[LinearPart]] = {}
            for use, seen in run.uses.items():
                if use.part not in known:
                    known.add(use.part)
                    by_identity.setdefault(seen.identity, []).append(use.part)
            groups += by_identity.values()
        return tuple(map(tuple, groups))

    def reading(
        self,
        factors_for: Callable[[Use], torch.Tensor],
        *,
        factors: Factors | None = None,
        vectors: Mapping[str, torch.Tensor] | None = None,
    ) -> Reading:
        """What multiplying channels does to all uses and the output.

        factors_for: as in :func:`qconv.model._probe_channels.read`
        factors: what the outputs of linears are multiplied by
        vectors: new values of vectors
        """
        changed = {**self.vectors, **(vectors or {})}
        readings = [
            read(
                before,
                run_synthetic(self.call, parameters=changed, factors=factors, deal=deal),
                factors_for,
            )
            for deal, before in zip(self.deals, self._before, strict=True)
        ]
        return _joined(readings)


def _joined(readings: Iterable[Reading]) -> Reading:
    """One reading of several runs: a use must read the same channels in all of them."""
    scaled: dict[Use, tuple[int, ...]] = {}
    otherwise: dict[Use, str] = {}
    elsewhere = False
    for reading in readings:
        elsewhere |= reading.elsewhere
        otherwise.update(reading.otherwise)
        for use, channels in reading.scaled.items():
            if scaled.setdefault(use, channels) != channels:
                otherwise[use] = "it reads other channels on other tokens"
    return Reading(
        scaled={use: each for use, each in scaled.items() if use not in otherwise},
        otherwise=otherwise,
        elsewhere=elsewhere,
    )
