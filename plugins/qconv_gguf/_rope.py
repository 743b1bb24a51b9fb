"""Rotary position embeddings: from config.json to llama.cpp's keys and frequency factors.

References: transformers' ``modeling_rope_utils.py``; llama.cpp's ``src/llama-context.cpp`` (what
scales what) and ``conversion/llama.py`` (Llama 3 as the tensor ``rope_freqs.weight``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qconv.errors import UnreadableInput, Unsupported

from ._container import Value, float32, string, uint32

#: YaRN's bounds, in rotations, that llama.cpp's llama has built in.
_BETA_FAST, _BETA_SLOW = 32.0, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """How positions are encoded.

    theta: base of the frequencies
    factor: how many times positions are stretched, 1 without scaling
    attention_factor: scale of cos and sin (YaRN)
    original_context: tokens the model was trained on before scaling
    frequency_factors: what each frequency is divided by (Llama 3), or None
    """

    scaling: Literal["none", "linear", "yarn"]
    theta: float
    factor: float = 1.0
    attention_factor: float = 1.0
    original_context: int = 0
    frequency_factors: tuple[float, ...] | None = None

    def metadata(self) -> dict[str, Value]:
        """The keys for architecture ``llama``."""
        values: dict[str, Value] = {}
        if self.scaling != "none":
            values["llama.rope.scaling.type"] = string(self.scaling)
            values["llama.rope.scaling.factor"] = float32(self.factor)
        if self.scaling == "yarn":
            values["llama.rope.scaling.original_context_length"] = uint32(self.original_context)
            own = 1.0 + 0.1 * math.log(self.factor)  # llama.cpp multiplies by this on its own
            if not math.isclose(self.attention_factor, own, rel_tol=1e-6):
                values["llama.rope.scaling.attn_factor"] = float32(self.attention_factor / own)
        values["llama.rope.freq_base"] = float32(self.theta)
        return values


def read_rope(config: Mapping[str, Any], *, head_dim: int, context: int) -> Rope:
    """Read ``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling``.

    Raises:
        Unsupported: a kind of scaling that llama.cpp's ``llama`` does not compute.
        UnreadableInput: a parameter is missing or not a positive number.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise UnreadableInput(
            f"config.json: rope parameters are {given!r}, but must be an object; correct it"
        )
    theta = config.get("rope_theta", 10000.0)
    parameters = {
        "rope_theta": 10000.0 if theta is None else theta,
        "original_max_position_embeddings": config.get("original_max_position_embeddings", context),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0),
        **{key: value for key, value in given.items() if value is not None},
    }
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if parameters["partial_rotary_factor"] != 1:
        raise Unsupported(
            f"config.json: partial_rotary_factor {parameters['partial_rotary_factor']!r} is not "
            "what llama.cpp's llama computes; only whole heads rotate there"
        )
    theta = _positive(parameters, "rope_theta")
    if kind == "default":
        return Rope(scaling="none", theta=theta)
    if kind == "linear":
        return Rope(scaling="linear", theta=theta, factor=_positive(parameters, "factor"))
    if kind == "llama3":
        factors = _llama3_factors(parameters, theta, head_dim)
        return Rope(scaling="none", theta=theta, frequency_factors=factors)
    if kind == "yarn":
        return _yarn(parameters, theta)
    raise Unsupported(
        f"config.json: rope scaling {kind!r} is not what llama.cpp's llama computes; "
        "it knows default, linear, llama3 and yarn"
    )


def _positive(parameters: Mapping[str, Any], key: str) -> float:
    value = parameters.get(key)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:  # type: ignore[operator]
        raise UnreadableInput(
            f"config.json: rope parameter {key} is {value!r}, but must be a number above 0; "
            "correct it"
        )
    return float(value)  # type: ignore[arg-type]


def _llama3_factors(
    parameters: Mapping[str, Any], theta: float, head_dim: int
) -> tuple[float, ...]:
    """Llama 3's stretching of low frequencies: what each frequency is divided by.

    In double precision, so that machines agree; llama.cpp's converter differs in the last bit.
    """
    factor = _positive(parameters, "factor")
    low = _positive(parameters, "low_freq_factor")
    high = _positive(parameters, "high_freq_factor")
    original = _positive(parameters, "original_max_position_embeddings")
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (index / head_dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(factors)


def _yarn(parameters: Mapping[str, Any], theta: float) -> Rope:
    bounds = (parameters.get("beta_fast", _BETA_FAST), parameters.get("beta_slow", _BETA_SLOW))
    if bounds != (_BETA_FAST, _BETA_SLOW) or not parameters.get("truncate", True):
        raise Unsupported(
            f"config.json: YaRN with beta_fast, beta_slow {bounds} and truncate "
            f"{parameters.get('truncate', True)} is not what llama.cpp's llama computes; it has "
            f"{(_BETA_FAST, _BETA_SLOW)} and True built in"
        )
    factor = _positive(parameters, "factor")
    return Rope(
        scaling="yarn",
        theta=theta,
        factor=factor,
        attention_factor=_yarn_attention(parameters, factor),
        original_context=int(_positive(parameters, "original_max_position_embeddings")),
    )


def _yarn_attention(parameters: Mapping[str, Any], factor: float) -> float:
    """Scale of cos and sin: as given, or by the paper's formula (https://arxiv.org/abs/2309.00071)."""

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if "attention_factor" in parameters:
        return _positive(parameters, "attention_factor")
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return scale(_positive(parameters, "mscale")) / scale(
            _positive(parameters, "mscale_all_dim")
        )
    return scale(1.0)
