"""Loads one plugin: imports it, checks its hooks, collects its specs and checks each of them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import pluggy

from qconv.plugin import (
    API_VERSION,
    BackendSpec,
    CheckSpec,
    Event,
    Hooks,
    MethodSpec,
    SourceSpec,
)

from ._isolation import PluginFault, contained
from ._names import LEGAL, did_you_mean, normalise
from ._records import kind_of

if TYPE_CHECKING:
    from ._discovery import Found
    from ._records import Spec

#: The hooks that yield specs, and what they must yield.
REGISTRATION: Mapping[str, type[Spec]] = {
    "qconv_methods": MethodSpec,
    "qconv_backends": BackendSpec,
    "qconv_sources": SourceSpec,
    "qconv_checks": CheckSpec,
}
HOOKS = (*REGISTRATION, "qconv_event")

Observer = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one sound plugin offers."""

    specs: tuple[Spec, ...]
    observers: tuple[Observer, ...]


def load_offer(found: Found, claimed: list[Spec]) -> Offer:
    """Load one plugin.

    claimed: receives every sound spec as it is met, so that they are known when a later one breaks

    Raises:
        PluginFault: the plugin cannot be used; it says why.
    """
    if found.point is None:
        raise PluginFault(found.problem)
    with contained("its import"):
        plugin = found.point.load()
    with contained("its registration"):
        manager = _register(plugin)
        hooks = {name: getattr(manager.hook, name).get_hookimpls() for name in HOOKS}
    if not any(hooks.values()):
        raise PluginFault(
            "plugin author: it implements no hook; mark functions named "
            f"{', '.join(HOOKS)} with @qconv.plugin.hookimpl"
        )
    for hook, kind in REGISTRATION.items():
        for implementation in hooks[hook]:
            _collect(hook, kind, implementation.function, claimed)
    observers = tuple(_observer(implementation) for implementation in hooks["qconv_event"])
    return Offer(specs=tuple(claimed), observers=observers)


def _register(plugin: object) -> pluggy.PluginManager:
    """The plugin in a manager of its own, so that what it breaks there is only its own."""
    _check_hook_names(plugin)
    manager = pluggy.PluginManager("qconv")
    manager.add_hookspecs(Hooks)
    try:
        manager.register(plugin)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        text = " ".join(str(error).split())
        raise PluginFault(
            f"plugin author: a hook does not match its specification: {text}"
        ) from None
    return manager


def _check_hook_names(plugin: object) -> None:
    """Refuse what pluggy overlooks in silence: misspelt hooks, and hooks nobody marked."""
    for name in dir(plugin):
        function = getattr(plugin, name, None)
        if not inspect.isroutine(function):
            continue
        marked = getattr(function, "qconv_impl", None) is not None
        if name in HOOKS and not marked:
            raise PluginFault(
                f"plugin author: '{name}' is not marked as a hook; mark it @qconv.plugin.hookimpl"
            )
        if name not in HOOKS and (marked or _is_misspelt(name, function, plugin)):
            raise PluginFault(
                f"plugin author: there is no hook '{name}'{did_you_mean(name, HOOKS)} "
                f"(hooks: {', '.join(HOOKS)})"
            )


def _is_misspelt(name: str, function: object, plugin: object) -> bool:
    """Whether an unmarked function, written in the plugin, is named almost like a hook."""
    home = getattr(plugin, "__name__", type(plugin).__module__)
    written_here = getattr(function, "__module__", None) == home
    return written_here and bool(difflib.get_close_matches(name, HOOKS, cutoff=0.9))


def _collect(
    hook: str, kind: type[Spec], function: Callable[[], Iterable[object]], claimed: list[Spec]
) -> None:
    """Call one hook and check what it yields, one object after the other."""
    with contained(f"hook {hook}"):
        offered = function()
        if not isinstance(offered, Iterable):
            raise PluginFault(
                f"plugin author: hook {hook} returned {_typed(offered)}; it must yield "
                f"{kind.__name__} objects (write 'yield' instead of 'return')"
            )
        for item in offered:
            if not isinstance(item, kind):
                raise PluginFault(
                    f"plugin author: hook {hook} yielded {_typed(item)}, not a {kind.__name__}"
                )
            _check_spec(item)
            claimed.append(item)


def _typed(item: object) -> str:
    """What an object is, without asking the object."""
    if item is None:
        return "None"
    if isinstance(item, type):
        return f"the class {item.__name__}"
    return f"a {type(item).__name__}"


def _check_spec(spec: Spec) -> None:
    kind = kind_of(spec)
    _check_name(kind, spec.name)
    what = f"{kind} '{spec.name}'"
    if type(spec.api_version) is not int or spec.api_version != API_VERSION:
        raise PluginFault(
            f"{what} was written for plugin API version {spec.api_version!r}, this qconv speaks "
            f"version {API_VERSION}; install releases of both that match"
        )
    if not isinstance(spec.summary, str):
        raise PluginFault(f"plugin author: {what}: summary is {_typed(spec.summary)}, not a str")
    if not callable(spec.load):
        raise PluginFault(
            f"plugin author: {what}: load is {_typed(spec.load)}; "
            "it must be a function that imports and returns the class"
        )
    if isinstance(spec, BackendSpec):
        _check_backend(spec, what)
    if isinstance(spec, MethodSpec):
        _check_method(spec, what)
    if isinstance(spec, SourceSpec) and not callable(spec.recognizes):
        raise PluginFault(
            f"plugin author: {what}: recognizes is {_typed(spec.recognizes)}; "
            "it must be a function of a ModelInfo that says whether it is of this family"
        )


def _check_method(spec: MethodSpec, what: str) -> None:
    for field, allowed in (
        ("kind", ("transform", "rounder", "block_rounder")),
        ("calibration", ("unused", "optional", "needed")),
    ):
        if getattr(spec, field) not in allowed:
            raise PluginFault(
                f"plugin author: {what}: {field} is {getattr(spec, field)!r}; "
                f"choose one of {', '.join(allowed)}"
            )
    _check_options(spec, what)


def _check_backend(spec: BackendSpec, what: str) -> None:
    if not isinstance(spec.formats, tuple) or not spec.formats:
        raise PluginFault(
            f"plugin author: {what}: formats must be a tuple of FormatSpec, not empty"
        )
    if spec.recognizes is not None and not callable(spec.recognizes):
        raise PluginFault(
            f"plugin author: {what}: recognizes is {_typed(spec.recognizes)}; "
            "it must be a function of a path that says whether it is an artifact of it"
        )
    _check_names(f"{what}: format", spec.formats)
    _check_options(spec, what)


def _check_options(spec: BackendSpec | MethodSpec, what: str) -> None:
    if not isinstance(spec.options, tuple):
        raise PluginFault(f"plugin author: {what}: options must be a tuple of OptionSpec")
    _check_names(f"{what}: option", spec.options)


def _check_names(kind: str, items: Iterable[object]) -> None:
    seen: set[str] = set()
    for item in items:
        name = getattr(item, "name", item)
        _check_name(kind, name)
        if normalise(str(name)) in seen:
            what, _, last = kind.rpartition(": ")
            raise PluginFault(f"plugin author: {what}: {last} '{name}' appears twice")
        seen.add(normalise(str(name)))


def _check_name(kind: str, name: object) -> None:
    if not isinstance(name, str) or not LEGAL.fullmatch(name):
        raise PluginFault(
            f"plugin author: {kind} name {name!r} is not allowed; use lower-case letters, digits, "
            "'_' and '-', a letter first"
        )


def _observer(implementation: pluggy.HookImpl) -> Observer:
    """The hook as a function of the event, whether or not it takes the event."""
    function = cast("Callable[..., None]", implementation.function)
    if "event" in implementation.argnames:
        return function
    return lambda _event: function()
