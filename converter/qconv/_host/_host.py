"""The host: what all sound plugins offer together, by name, and what is known of the others."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from qconv.errors import BrokenPlugin, QconvError, UnreadableInput, Unsupported, UsageError
from qconv.plugin import (
    Backend,
    BackendSpec,
    BlockRounder,
    Check,
    CheckSpec,
    Event,
    MethodSpec,
    ModelInfo,
    Rounder,
    Runtime,
    Source,
    SourceSpec,
    Transform,
)

from ._chains import Chain, Step, make_chain
from ._discovery import OURS, Found, canonical, find_plugins
from ._isolation import PluginFault, contained, describe
from ._loading import Observer, load_offer
from ._names import did_you_mean, listing, normalise
from ._records import PluginRecord, Spec, kind_of
from ._runtimes import device_arguments, with_device
from ._targets import Target, make_target, split_target, unknown_target

DISABLE = "QCONV_DISABLE_PLUGINS"

#: What the class behind a method must have, by the kind of the method.
_PROTOCOLS: Mapping[str, type[Any]] = {
    "rounder": Rounder,
    "transform": Transform,
    "block_rounder": BlockRounder,
}

AnySpec = TypeVar("AnySpec", MethodSpec, BackendSpec, SourceSpec, CheckSpec)


class Host:
    """The plugins of this installation. Built by :func:`load_plugins`."""

    def __init__(
        self,
        records: Sequence[PluginRecord],
        observers: Iterable[tuple[PluginRecord, Observer]] = (),
    ) -> None:
        self._records = tuple(records)
        self._observers = tuple(observers)
        self._complained: set[str] = set()

    def listing(self) -> tuple[PluginRecord, ...]:
        """Every plugin found, sound or not, in loading order."""
        return self._records

    @property
    def methods(self) -> tuple[MethodSpec, ...]:
        """The methods of all sound plugins."""
        return tuple(spec for record in self._records for spec in record.methods)

    @property
    def backends(self) -> tuple[BackendSpec, ...]:
        """The backends of all sound plugins."""
        return tuple(spec for record in self._records for spec in record.backends)

    @property
    def sources(self) -> tuple[SourceSpec, ...]:
        """The families of quantized checkpoints that all sound plugins read."""
        return tuple(spec for record in self._records for spec in record.sources)

    @property
    def checks(self) -> tuple[CheckSpec, ...]:
        """The validator checks of all sound plugins."""
        return tuple(spec for record in self._records for spec in record.checks)

    def method_spec(self, name: str) -> MethodSpec:
        """The method called ``name``.

        Raises:
            UsageError: there is none.
            BrokenPlugin: the plugin that has it is broken.
        """
        return self._find("method", name, self.methods)

    def backend_spec(self, name: str) -> BackendSpec:
        """The backend called ``name``; raises as :meth:`method_spec` does."""
        return self._find("backend", name, self.backends)

    def resolve_chain(self, text: str) -> Chain:
        """The method chain that ``text`` means, e.g. ``awq,gptq,damp=0.05``.

        Raises:
            UsageError: an unknown step or option, or steps that do not go together.
            BrokenPlugin: the plugin that has a step is broken.
        """
        return make_chain(text, self.method_spec)

    def step(self, step: Step) -> Rounder | Transform | BlockRounder:
        """A new instance of a chain's step, made with its options.

        Raises:
            UsageError: an option's value does not do.
            BrokenPlugin: its plugin is broken, or it cannot be loaded.
        """
        made = self._load(step.spec, _PROTOCOLS[step.spec.kind], step.options)
        return cast("Rounder | Transform | BlockRounder", made)

    def method(self, name: str) -> Rounder:
        """A new instance of the rounder called ``name``, without options; see :meth:`step`."""
        return cast("Rounder", self.step(Step(spec=self.method_spec(name))))

    def backend(self, name: str) -> Backend:
        """A new instance of the backend called ``name``.

        Raises:
            UsageError: there is no such backend.
            BrokenPlugin: its plugin is broken, or it cannot be loaded.
        """
        return cast("Backend", self._load(self.backend_spec(name), Backend))

    def backend_of(self, path: Path) -> BackendSpec:
        """The backend that ``path`` is an artifact of.

        Raises:
            UnreadableInput: there is nothing, or nothing that a backend knows.
            UsageError: it is an artifact of several.
            BrokenPlugin: a backend cannot tell.
        """
        if not path.exists():
            raise UnreadableInput(f"{path}: no such file or folder; check the path")
        found = [spec for spec in self.backends if spec.recognizes and self._knows(spec, path)]
        if not found:
            names = [spec.name for spec in self.backends if spec.recognizes]
            raise UnreadableInput(
                f"{path}: no artifact of a known format (backends that were asked: "
                f"{listing(names)}); name a file or folder that qconv wrote"
            )
        if len(found) > 1:
            names = [spec.name for spec in found]
            raise UsageError(
                f"{path}: holds artifacts of several backends ({listing(names)}); "
                "name the one file that is meant"
            )
        return found[0]

    def _knows(self, spec: BackendSpec, path: Path) -> bool:
        try:
            with contained(f"plugin author: backend '{spec.name}': recognizes()"):
                return bool(spec.recognizes is not None and spec.recognizes(path))
        except PluginFault as fault:
            owner = self.owner(spec)
            raise BrokenPlugin(
                f"{owner.label}: {fault}; {DISABLE}={owner.entry_point} leaves the plugin out"
            ) from fault

    def runtime(self, path: Path, context: int, device: str = "auto") -> Runtime:
        """``path`` in the engine that its backend has for it, see :class:`qconv.plugin.Runtime`.

        Raises:
            Unsupported: the backend has no engine, or one that computes on no device but its own.
            BrokenPlugin: the engine, or what it needs, is not installed.
            UnreadableInput: the engine refuses the artifact; and as :meth:`backend_of` raises.
        """
        spec = self.backend_of(path)
        load = getattr(self.backend(spec.name), "runtime", None)
        if load is None:
            raise Unsupported(
                f"{path}: backend '{spec.name}' runs no artifacts; run it where it belongs"
            )
        try:
            with contained(f"backend '{spec.name}': runtime()", QconvError, MemoryError):
                loaded = load(path, context, *device_arguments(load, spec.name, device))
        except PluginFault as fault:
            raise BrokenPlugin(f"{self.owner(spec).label}: {fault}") from fault
        return cast("Runtime", with_device(loaded))

    def source_spec(self, name: str) -> SourceSpec:
        """The source called ``name``; raises as :meth:`method_spec` does."""
        return self._find("source", name, self.sources)

    def source(self, name: str) -> Source:
        """A new instance of the source called ``name``; raises as :meth:`backend` does."""
        return cast("Source", self._load(self.source_spec(name), Source))

    def check(self, name: str) -> Check:
        """A new instance of the validator check called ``name``; raises as :meth:`backend` does."""
        return cast("Check", self._load(self._find("check", name, self.checks), Check))

    def recognizing(self, model: ModelInfo) -> tuple[SourceSpec, ...]:
        """The sources that take ``model`` for one of their family.

        Raises:
            BrokenPlugin: one of them cannot tell.
        """
        return tuple(spec for spec in self.sources if self._recognizes(spec, model))

    def _recognizes(self, spec: SourceSpec, model: ModelInfo) -> bool:
        try:
            with contained(f"plugin author: source '{spec.name}': recognizes()"):
                return bool(spec.recognizes(model))
        except PluginFault as fault:
            owner = self.owner(spec)
            raise BrokenPlugin(
                f"{owner.label}: {fault}; {DISABLE}={owner.entry_point} leaves the plugin out"
            ) from fault

    def resolve_target(self, text: str) -> Target:
        """The target that ``text`` means, e.g. ``gguf:q4km,search=ggml``.

        Raises:
            UsageError: no such backend, format or option; it says which there are.
            BrokenPlugin: the plugin that has the backend is broken.
        """
        name, _, _ = split_target(text)
        spec = _named(name, self.backends)
        if spec is None:
            self._refuse_broken("backend", name)
            raise UsageError(unknown_target(text, self.backends))
        return make_target(text, spec, self.backends)

    def resolve_targets(self, texts: str | Sequence[str]) -> tuple[Target, ...]:
        """The targets that ``texts`` mean.

        Raises:
            UsageError: there are none, one is unknown, or two are the same.
            BrokenPlugin: the plugin that has a backend is broken.
        """
        wanted = [texts] if isinstance(texts, str) else list(texts)
        if not wanted:
            raise UsageError("no target given; say what to write, e.g. --to gguf:q4_k_m")
        targets = tuple(self.resolve_target(text) for text in wanted)
        if len({(target.label, str(target.options)) for target in targets}) != len(targets):
            raise UsageError(f"a target is given twice: {', '.join(wanted)}; name each once")
        return targets

    def notify(self, event: Event) -> None:
        """Show ``event`` to every observer. What one raises is logged, once per plugin."""
        for record, observer in self._observers:
            try:
                observer(event)
            except (Exception, SystemExit) as error:  # noqa: BLE001, PERF203 - never stops the work
                self._complain(record, error)

    def watch(self, observer: Callable[[Event], None] | None) -> Callable[[Event], None]:
        """One observer for all: plugins watch first; ``observer`` may raise, and stops the work."""

        def both(event: Event) -> None:
            self.notify(event)
            if observer is not None:
                observer(event)

        return both

    def _complain(self, record: PluginRecord, error: BaseException) -> None:
        if record.label in self._complained:
            return
        self._complained.add(record.label)
        logging.getLogger("qconv").warning(
            "%s: hook qconv_event failed: %s (said once)", record.label, describe(error)
        )

    def _find(self, kind: str, name: str, specs: Sequence[AnySpec]) -> AnySpec:
        spec = _named(name, specs)
        if spec is not None:
            return spec
        self._refuse_broken(kind, name)
        names = [item.name for item in specs]
        raise UsageError(
            f"unknown {kind} '{name}'{did_you_mean(name, names)} ({kind}s: {listing(names)})"
        )

    def _refuse_broken(self, kind: str, name: str) -> None:
        """Raise BrokenPlugin when a plugin that is not in use has, or probably has, ``name``."""
        for record in self._records:
            claimed = any(
                claim_kind == kind and normalise(claim) == normalise(name)
                for claim_kind, claim in record.claimed
            )
            named = normalise(record.entry_point) == normalise(name)
            if record.status != "ok" and (claimed or named):
                raise BrokenPlugin(
                    f"{kind} '{name}' is not available: {record.label} is {record.status}: "
                    f"{record.reason}"
                )

    def _load(
        self,
        spec: MethodSpec | BackendSpec | SourceSpec | CheckSpec,
        protocol: type[Any],
        options: Mapping[str, str] | None = None,
    ) -> object:
        """Import what the spec points to, make an instance, and check that it is one."""
        kind = kind_of(spec)
        try:
            with contained(f"loading {kind} '{spec.name}'", UsageError):
                instance = spec.load()(**(options or {}))
                _check_instance(f"{kind} '{spec.name}'", instance, protocol)
        except PluginFault as fault:
            raise BrokenPlugin(f"{self.owner(spec).label}: {fault}") from fault
        return instance

    def owner(self, spec: Spec) -> PluginRecord:
        """The plugin that brought ``spec``."""
        return next(
            record for record in self._records if any(item is spec for item in record.specs)
        )


def load_plugins() -> Host:
    """Find and load all plugins; a broken one is listed with its reason and breaks nothing else."""
    records: list[PluginRecord] = []
    observers: list[tuple[PluginRecord, Observer]] = []
    for found in find_plugins():
        record, watching = _load_one(found, records)
        records.append(record)
        observers.extend((record, observer) for observer in watching)
    return Host(records, observers)


def host_of(plugin: object, name: str) -> Host:
    """A host with one plugin that is not installed, e.g. one under test.

    name: stands for its entry point and distribution
    """
    point = _Given(plugin)
    found = Found(distribution=name, version="not installed", name=name, point=point)
    record, watching = _load_one(found, ())
    return Host((record,), [(record, observer) for observer in watching])


@dataclass(frozen=True, slots=True)
class _Given:
    """An entry point whose plugin is there already."""

    plugin: object

    def load(self) -> object:
        return self.plugin


def _load_one(
    found: Found, earlier: Sequence[PluginRecord]
) -> tuple[PluginRecord, tuple[Observer, ...]]:
    record = PluginRecord(
        distribution=found.distribution,
        version=found.version,
        entry_point=found.name,
        status="ok",
    )
    if _is_disabled(found):
        return replace(record, status="disabled", reason=f"disabled by {DISABLE}"), ()
    specs: list[Spec] = []
    try:
        _check_entry_point(found, earlier)
        offer = load_offer(found, specs)
        _check_collisions(specs, earlier)
    except PluginFault as fault:
        claimed = tuple((kind_of(spec), spec.name) for spec in specs)
        return replace(record, status="broken", reason=str(fault), claimed=claimed), ()
    return replace(
        record,
        methods=tuple(spec for spec in specs if isinstance(spec, MethodSpec)),
        backends=tuple(spec for spec in specs if isinstance(spec, BackendSpec)),
        sources=tuple(spec for spec in specs if isinstance(spec, SourceSpec)),
        checks=tuple(spec for spec in specs if isinstance(spec, CheckSpec)),
    ), offer.observers


def _is_disabled(found: Found) -> bool:
    """Whether the environment says so, by entry point or distribution; ``*`` spares ours."""
    names = {normalise(name) for name in os.environ.get(DISABLE, "").split(",") if name.strip()}
    if "*" in names and not found.ours:
        return True
    by_distribution = not found.ours and normalise(found.distribution) in names
    return normalise(found.name) in names or by_distribution


def _check_entry_point(found: Found, earlier: Iterable[PluginRecord]) -> None:
    """Two entry points of one name would leave nobody knowing which of them is meant."""
    for record in earlier:
        if normalise(record.entry_point) == normalise(found.name) and found.point is not None:
            raise PluginFault(
                f"its entry point name '{found.name}' is taken by {record.distribution} "
                f"{record.version}; {found.distribution} must choose another, or uninstall one"
            )


def _check_collisions(specs: Sequence[Spec], earlier: Sequence[PluginRecord]) -> None:
    """First come, first served: names of earlier plugins are taken, and each may come once."""
    taken: dict[tuple[str, str], str] = {}
    for record in earlier:
        owned = [(kind_of(spec), spec.name) for spec in record.specs]
        # What a broken plugin of ours was to offer stays ours; a stranger's is free for others.
        reserved = record.claimed if canonical(record.distribution) == OURS else ()
        for kind, name in (*owned, *reserved):
            taken.setdefault((kind, normalise(name)), f"{record.distribution} {record.version}")
    for spec in specs:
        key = (kind_of(spec), normalise(spec.name))
        if key in taken:
            raise PluginFault(
                f"{key[0]} '{spec.name}' is taken by {taken[key]}; rename it, or uninstall one"
            )
        taken[key] = "this plugin itself"


def _named(name: str, specs: Iterable[AnySpec]) -> AnySpec | None:
    return next((spec for spec in specs if normalise(spec.name) == normalise(name)), None)


def _check_instance(what: str, instance: object, protocol: type[Any]) -> None:
    """Refuse an instance without the protocol's methods, or with others' arguments."""
    where = f"qconv.plugin.{protocol.__name__}"
    for name, declared in _methods_of(protocol).items():
        method = getattr(instance, name, None)
        if not callable(method):
            raise PluginFault(
                f"plugin author: {what}: {type(instance).__name__} lacks {name}(); see {where}"
            )
        arguments = list(inspect.signature(declared).parameters)[1:]
        try:
            inspect.signature(method).bind(*arguments)
        except (TypeError, ValueError):
            raise PluginFault(
                f"plugin author: {what}: {type(instance).__name__}.{name}() must take "
                f"({', '.join(arguments)}); see {where}"
            ) from None


def _methods_of(protocol: type[Any]) -> Mapping[str, Callable[..., Any]]:
    return {
        name: member
        for name, member in vars(protocol).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }
