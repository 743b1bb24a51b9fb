"""Reads method chains as people write them: ``awq,gptq,damp=0.05``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from qconv.errors import UsageError

from ._options import read_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from qconv.plugin import MethodSpec

#: The rounder of a chain that names none.
DEFAULT_ROUNDER = "rtn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a chain and the options given for it."""

    spec: MethodSpec
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As it would be written: ``gptq,damp=0.05``."""
        return ",".join([self.spec.name, *(f"{k}={v}" for k, v in sorted(self.options.items()))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Transforms, and the one rounder that ends them."""

    transforms: tuple[Step, ...]
    rounder: Step

    @property
    def steps(self) -> tuple[Step, ...]:
        """All of it, in order."""
        return (*self.transforms, self.rounder)

    @property
    def label(self) -> str:
        """As it would be written, its rounder always named."""
        return ",".join(step.label for step in self.steps)

    @property
    def calibration(self) -> Literal["unused", "optional", "needed"]:
        """What the step that asks for most makes of statistics."""
        wants = {step.spec.calibration for step in self.steps}
        return next(want for want in ("needed", "optional", "unused") if want in wants)


def make_chain(text: str, find: Callable[[str], MethodSpec]) -> Chain:
    """The chain that ``text`` means.

    find: the method of a name; raises for one that does not exist

    Raises:
        UsageError: an unknown step or option, two rounders, a transform after the rounder.
    """
    steps = _steps(text, find)
    rounders = [step for step in steps if step.spec.kind != "transform"]
    if len(rounders) > 1:
        names = " and ".join(f"'{step.spec.name}'" for step in rounders)
        raise UsageError(
            f"method '{text}' has {len(rounders)} rounders, {names}: a weight is rounded once; "
            "keep one of them"
        )
    if rounders and steps[-1] is not rounders[0]:
        raise UsageError(
            f"method '{text}': '{steps[-1].spec.name}' rescales weights and must come before the "
            f"rounder '{rounders[0].spec.name}'; write it first"
        )
    used = [step.spec.name for step in steps]
    for name in used:
        if used.count(name) > 1:
            raise UsageError(f"method '{text}' has '{name}' twice; name each step once")
    rounder = rounders[0] if rounders else Step(spec=find(DEFAULT_ROUNDER))
    return Chain(transforms=tuple(s for s in steps if s is not rounder), rounder=rounder)


def _steps(text: str, find: Callable[[str], MethodSpec]) -> Sequence[Step]:
    """Names become steps, ``name=value`` options of the step before."""
    found: list[tuple[MethodSpec, dict[str, str]]] = []
    for item in _items(text):
        if "=" not in item:
            found.append((find(item), {}))
            continue
        if not found:
            raise UsageError(
                f"method '{text}': option '{item}' stands before any method; "
                "write it after the one it belongs to, e.g. gptq,damp=0.05"
            )
        spec, options = found[-1]
        name, value = read_option(
            f"method '{text}'", spec.name, item, spec.options, already=options
        )
        options[name] = value
    return [Step(spec=spec, options=options) for spec, options in found]


def _items(text: str) -> Iterable[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise UsageError(
            f"method '{text}' has an empty step; write e.g. awq,gptq, or rtn for round to nearest"
        )
    return items
