"""What the ``quantization_config`` of a GPTQ checkpoint says of a module.

The keys are those of AutoGPTQ, GPTQModel and AutoRound; ``dynamic`` (GPTQModel) maps patterns to
what differs in the modules they match, ``-:`` before a pattern leaves them in float.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from qconv.errors import UnreadableInput, Unsupported

from ._families import quantization
from ._patterns import check_pattern
from ._section import Section, shown

if TYPE_CHECKING:
    from qconv.plugin import ModelInfo

Version = Literal["v1", "v2"]

_FORMATS: Mapping[str, Version] = {"gptq": "v1", "gptq_v2": "v2"}
_BITS = (2, 3, 4, 8)
_LARGEST_GROUP = 1 << 24
#: Quantizers that write version 1 where they name no format: AutoGPTQ and optimum before there was
#: a key for it, GPTQModel as it reads files without it, and AutoRound.
_VERSION_1 = ("auto_gptq", "auto-gptq", "autogptq", "optimum", "gptqmodel", "auto-round")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a module is quantized.

    group_size: -1 for a whole row
    act_order: columns may have been reordered
    version: None where only values tell
    dynamic: what differs, by pattern; None for modules left in float
    """

    bits: int
    group_size: int
    symmetric: bool
    act_order: bool
    version: Version | None
    dynamic: Mapping[str, Section | None] = field(default_factory=dict)

    def of(self, module: str) -> Settings:
        """The settings of one module: the first pattern that matches decides.

        Raises:
            UnreadableInput: the module should be in float.
            Unsupported: what differs is not decoded.
        """
        for pattern, section in self.dynamic.items():
            if not re.match(pattern, module):
                continue
            if section is None:
                raise UnreadableInput(
                    f"tensor '{module}.weight': stored quantized, but config.json's dynamic leaves "
                    f"{shown(pattern)} in float; they do not belong together, get all files anew"
                )
            own = replace(
                self,
                bits=_bits(section, self.bits),
                group_size=_group_size(section, self.group_size),
                symmetric=section.flag("sym", default=self.symmetric),
            )
            _check_version(section, own)
            return own
        return self


def read_settings(model: ModelInfo) -> Settings:
    """Read ``quantization_config``.

    Raises:
        UnreadableInput: a value is missing or impossible.
        Unsupported: another layout, or zero-points of which nothing tells the version.
    """
    config = quantization(model)
    _refuse_kinds(model, config)
    settings = Settings(
        bits=_bits(config, None),
        group_size=_group_size(config, None),
        symmetric=config.flag("sym", default=True),
        act_order=config.flag("desc_act", default=False),
        version=_version(config),
        dynamic=_dynamic(config),
    )
    _check_version(config, settings)
    return settings


def _refuse_kinds(model: ModelInfo, config: Section) -> None:
    if config.flag("is_marlin_format", default=False):
        raise Unsupported(
            f"{config.where}: the Marlin layout is made for one kernel and is not decoded; "
            "start from a checkpoint in the gptq format"
        )
    words = config.text("pack_dtype", "int32")
    if words != "int32":
        raise Unsupported(
            f"{config.where}: pack_dtype {shown(words)} is not decoded, only int32; "
            "save the model with pack_dtype int32"
        )
    if model.config.get("model_type") == "gpt2":
        raise Unsupported(
            "config.json: GPT-2's Conv1D layers hold their weights transposed, which GPTQ's "
            "tensors do not say; start from the float checkpoint"
        )


def _bits(section: Section, default: int | None) -> int:
    bits = section.whole("bits", 1, 16, default)
    if bits not in _BITS:
        raise Unsupported(
            f"{section.where}: GPTQ of {bits} bits is not decoded, only of "
            f"{', '.join(map(str, _BITS))}; start from the float checkpoint"
        )
    return bits


def _group_size(section: Section, default: int | None) -> int:
    size = section.whole("group_size", -1, _LARGEST_GROUP, default)
    if size == 0:
        section.refuse("group_size", "a positive whole number, or -1 for a whole row")
    return size


def _version(config: Section) -> Version | None:
    named = config.values.get("checkpoint_format", config.values.get("format"))
    if named is None:
        return "v1" if _quantizer(config).startswith(_VERSION_1) else None
    name = config.text("checkpoint_format" if "checkpoint_format" in config.values else "format")
    if name.lower() not in _FORMATS:
        raise Unsupported(
            f"{config.where}: checkpoint_format {shown(name)} is not decoded, only "
            f"{', '.join(_FORMATS)}; save the model in one of these"
        )
    return _FORMATS[name.lower()]


def _quantizer(config: Section) -> str:
    """The tool that wrote the checkpoint, as it names itself; empty when it does not."""
    meta = config.values.get("meta")
    named = meta.get("quantizer") if isinstance(meta, dict) else None
    if isinstance(named, list) and named:
        named = named[0]
    if not isinstance(named, str):
        named = config.values.get("provider", config.values.get("quantizer"))
    return named.lower() if isinstance(named, str) else ""


def _check_version(section: Section, settings: Settings) -> None:
    if settings.version is None and not settings.symmetric:
        raise Unsupported(
            f"{section.where}: nothing says whether the zero-points are stored as GPTQ version 1 "
            "(less one) or 2, and asymmetric ones cannot tell; set checkpoint_format to gptq or "
            "gptq_v2, as the tool that made the checkpoint wrote it"
        )


def _dynamic(config: Section) -> dict[str, Section | None]:
    inner = config.section("dynamic")
    if inner is None:
        return {}
    found: dict[str, Section | None] = {}
    for key in inner.values:
        left = key.startswith("-:")
        pattern = key.removeprefix("-:").removeprefix("+:")
        check_pattern(inner.where, pattern)
        found[pattern] = (
            None if left else inner.section(key) or Section(where=inner.where, values={})
        )
    return found
