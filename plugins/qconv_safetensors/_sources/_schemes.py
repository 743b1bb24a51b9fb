"""What the ``quantization_config`` of compressed-tensors says of a module.

The keys: https://github.com/vllm-project/compressed-tensors, ``QuantizationConfig`` and
``QuantizationArgs``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qconv.errors import UnreadableInput, Unsupported

from ._float8 import LARGEST_BLOCK
from ._patterns import check_pattern
from ._section import Section, shown

if TYPE_CHECKING:
    from qconv.grids import ActivationGrid

#: Formats whose weights are decoded, and what the weights are stored as.
_STORED: Mapping[str, Literal["packed", "plain"]] = {
    "pack-quantized": "packed",
    "int-quantized": "plain",
    "float-quantized": "plain",
    "naive-quantized": "plain",
}
#: Only the groups say which format it is.
_MIXED = "mixed-precision"
_STRATEGIES = ("tensor", "channel", "group", "block")
_LARGEST_GROUP = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How the modules of a group are quantized.

    stored: packed into words, or one byte each
    kind: integers of ``bits`` bits, or FP8 (E4M3)
    group_size: columns per scale with strategy ``group``
    block: rows and columns per scale with strategy ``block``
    """

    targets: tuple[str, ...]
    stored: Literal["packed", "plain"]
    kind: Literal["int", "float"]
    bits: int
    symmetric: bool
    strategy: Literal["tensor", "channel", "group", "block"]
    group_size: int | None
    block: tuple[int, ...] | None
    activation: ActivationGrid | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schemes:
    """All groups of a config, and the modules that none applies to."""

    groups: tuple[Scheme, ...]
    ignore: tuple[str, ...]

    def of(self, module: str) -> Scheme:
        """The scheme of ``module``: named exactly, by a pattern, or by its class.

        Raises:
            UnreadableInput: the module is ignored, or in no group, but stored quantized.
        """
        if any(_names(target, module) for target in self.ignore):
            raise UnreadableInput(
                f"tensor '{module}.weight': stored quantized, but config.json's ignore list says "
                "it is not; config.json and weights do not belong together, get all files anew"
            )
        for match in (_is_name, _is_pattern, _is_class):
            for scheme in self.groups:
                if any(match(target, module) for target in scheme.targets):
                    return scheme
        raise UnreadableInput(
            f"tensor '{module}.weight': stored quantized, but no group of config.json's "
            "config_groups has it among its targets; config.json and weights do not belong "
            "together, get all files anew"
        )


def read_schemes(config: Section) -> Schemes:
    """Read ``quantization_config``.

    Raises:
        UnreadableInput: a value is missing or impossible.
        Unsupported: a format or kind of number that is not decoded.
    """
    _refuse_features(config)
    groups = config.sections("config_groups")
    if not groups:
        config.refuse("config_groups", "an object of groups")
    default = config.text("format", "pack-quantized")
    schemes = tuple(_scheme(group, default) for group in groups.values())
    ignore = config.texts("ignore")
    for target in (*ignore, *(target for scheme in schemes for target in scheme.targets)):
        if target.startswith("re:"):
            check_pattern(config.where, target.removeprefix("re:"))
    return Schemes(groups=schemes, ignore=ignore)


def _refuse_features(config: Section) -> None:
    transforms = config.section("transform_config")
    if transforms is not None and transforms.sections("config_groups"):
        raise Unsupported(
            f"{config.where}: transform_config applies rotations at run time, which a decoded "
            "weight would lack; start from the float checkpoint"
        )
    sparsity = config.section("sparsity_config")
    if sparsity is not None and sparsity.text("format", "dense") != "dense":
        raise Unsupported(
            f"{config.where}: sparsity_config format {shown(sparsity.values['format'])} is not "
            "decoded, only dense; start from the float checkpoint"
        )


def _scheme(group: Section, default: str) -> Scheme:
    weights = group.section("weights")
    if weights is None:
        group.refuse("weights", "an object that says how weights are quantized")
    if group.section("output_activations") is not None:
        raise Unsupported(
            f"{group.where}: output_activations are quantized, which is not carried over; "
            "start from the float checkpoint"
        )
    kind = weights.text("type", "int").lower()
    bits = weights.whole("num_bits", 1, 16, 8)
    _check_kind(weights, kind, bits)
    strategy, group_size = _strategy(weights)
    return Scheme(
        targets=group.texts("targets"),
        stored=_stored(group, default, kind),
        kind="float" if kind == "float" else "int",
        bits=bits,
        symmetric=weights.flag("symmetric", default=True),
        strategy=strategy,
        group_size=group_size,
        block=weights.wholes("block_structure", 2, LARGEST_BLOCK),
        activation=_activation(group.section("input_activations")),
    )


def _stored(group: Section, default: str, kind: str) -> Literal["packed", "plain"]:
    name = group.text("format", default)
    stored = _STORED.get(name)
    if stored is None or (stored == "packed" and kind == "float"):
        hint = "every group must then say its own" if name == _MIXED else "of other weights"
        raise Unsupported(
            f"{group.where}: format {shown(name)} is not decoded ({hint}), only "
            f"{', '.join(_STORED)}; start from the float checkpoint"
        )
    return stored


def _check_kind(weights: Section, kind: str, bits: int) -> None:
    if (kind == "int" and 2 <= bits <= 8) or (kind == "float" and bits == 8):
        return
    raise Unsupported(
        f"{weights.where}: weights of type {shown(kind)} and {bits} bits are not decoded, only "
        "int of 2 to 8 bits and float of 8; start from the float checkpoint"
    )


def _strategy(
    weights: Section,
) -> tuple[Literal["tensor", "channel", "group", "block"], int | None]:
    """The strategy, inferred from group_size where it is not said, as compressed-tensors does."""
    group_size = weights.values.get("group_size")
    if group_size is not None:
        group_size = weights.whole("group_size", -1, _LARGEST_GROUP)
    inferred = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    found = weights.text("strategy", inferred).lower()
    if found not in _STRATEGIES:
        raise Unsupported(
            f"{weights.where}: strategy {shown(found)} is not decoded, only "
            f"{', '.join(_STRATEGIES)}; start from the float checkpoint"
        )
    if found == "group" and (group_size is None or group_size < 1):
        weights.refuse("group_size", "a positive whole number with strategy 'group'")
    if found == "block" and weights.wholes("block_structure", 2, LARGEST_BLOCK) is None:
        weights.refuse("block_structure", "rows and columns with strategy 'block'")
    # mypy does not narrow by membership
    strategy: Literal["tensor", "channel", "group", "block"] = found  # type: ignore[assignment]
    return strategy, group_size if found == "group" else None


def _activation(values: Section | None) -> ActivationGrid | None:
    from qconv.grids import ActivationGrid

    if values is None:
        return None
    kind = values.text("type", "int").lower()
    bits = values.whole("num_bits", 2, 16, 8)
    dynamic = _dynamic(values)
    symmetric = values.flag("symmetric", default=True)
    scope = values.text("strategy", "tensor").lower()
    number = (kind == "int" and bits <= 8) or (kind == "float" and bits == 8 and symmetric)
    if not number or scope not in {"token", "tensor", "group"}:
        raise Unsupported(
            f"{values.where}: activations of type {shown(kind)}, {bits} bits, strategy "
            f"{shown(scope)} are not supported, only int of up to 8 bits and symmetric float of 8, "
            "by token, tensor or group; start from the float checkpoint"
        )
    if not dynamic and scope != "tensor":
        values.refuse("dynamic", f"true with strategy {scope!r}, or the strategy 'tensor'")
    size = values.whole("group_size", 1, _LARGEST_GROUP) if scope == "group" else None
    return ActivationGrid(
        bits=bits,
        symmetric=symmetric,
        scope="group" if scope == "group" else "token" if scope == "token" else "tensor",
        dynamic=dynamic,
        kind="float" if kind == "float" else "int",
        group_size=size,
    )


def _dynamic(values: Section) -> bool:
    if values.values.get("dynamic") == "local":
        raise Unsupported(
            f"{values.where}: dynamic 'local' (NVFP4) is not supported; "
            "start from the float checkpoint"
        )
    return values.flag("dynamic", default=False)


def _names(target: str, module: str) -> bool:
    return _is_name(target, module) or _is_pattern(target, module)


def _is_name(target: str, module: str) -> bool:
    return target == module


def _is_pattern(target: str, module: str) -> bool:
    return target.startswith("re:") and bool(re.match(target.removeprefix("re:"), module))


def _is_class(target: str, module: str) -> bool:
    return target in _classes(module)


def _classes(module: str) -> Iterator[str]:
    """Names of classes a module may have; its own name is all there is to tell."""
    last = module.rpartition(".")[2]
    if last.startswith("embed") or last == "wte":
        yield "Embedding"
    else:
        yield "Linear"
