"""How large the state of a state-space or linear-attention layer is.

Mamba: https://arxiv.org/abs/2312.00752; Mamba-2: https://arxiv.org/abs/2405.21060; gated delta
rule: https://arxiv.org/abs/2412.06464. Sizes as transformers' modules of these families have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from qconv.errors import Unsupported
from qconv.memory._numbers import Numbers
from qconv.memory._shape import State

if TYPE_CHECKING:
    from qconv.memory._text import TextConfig


def state_of(text: TextConfig) -> State:
    """The state of one layer.

    Raises:
        Unsupported: how large it is in this family is not known.
    """
    for families, measure in _FAMILIES:
        if text.family in families:
            return measure(text.numbers, text.values)
    raise Unsupported(
        f"model_type {text.family!r}: how large the state of its recurrent layers is, is not "
        "known, so its memory cannot be predicted; run it and look, e.g. with nvidia-smi"
    )


def _mamba1(numbers: Numbers, _: Mapping[str, Any]) -> State:
    inner = numbers.need("hidden_size", "d_model") * (_expands(numbers) or 2)
    state = numbers.need("state_size", "mamba_d_state")
    return State(channels=inner, kernel=_kernel(numbers), values=inner * state)


def _expands(numbers: Numbers) -> int | None:
    return numbers.find("expand", "mamba_expand")


def _kernel(numbers: Numbers) -> int:
    return numbers.need("conv_kernel", "mamba_d_conv")


def _mamba2(numbers: Numbers, _: Mapping[str, Any]) -> State:
    heads = numbers.find("mamba_n_heads", "n_mamba_heads", "mamba_num_heads", "num_heads")
    width = numbers.find("mamba_d_head", "mamba_headdim", "mamba_head_dim", "head_dim")
    inner = numbers.find("mamba_d_ssm") or (heads or 0) * (width or 0)
    inner = inner or numbers.need("hidden_size", "d_model") * (_expands(numbers) or 2)
    groups = numbers.find("mamba_n_groups", "mamba_ngroups", "n_groups") or 1
    state = numbers.need("state_size", "mamba_d_state", "ssm_state_size")
    return State(channels=inner + 2 * groups * state, kernel=_kernel(numbers), values=inner * state)


def _delta(numbers: Numbers, _: Mapping[str, Any]) -> State:
    keys, width = numbers.need("linear_num_key_heads"), numbers.need("linear_key_head_dim")
    heads, values = numbers.need("linear_num_value_heads"), numbers.need("linear_value_head_dim")
    return State(
        channels=2 * keys * width + heads * values,
        kernel=numbers.need("linear_conv_kernel_dim"),
        values=heads * width * values,
    )


def _kimi(numbers: Numbers, config: Mapping[str, Any]) -> State:
    nested = config.get("linear_attn_config")
    if isinstance(nested, Mapping):
        numbers = Numbers(nested, "linear_attn_config")
    heads = numbers.need("linear_num_heads", "num_heads")
    width = numbers.need("linear_head_dim", "head_dim")
    kernel = numbers.need("linear_conv_kernel_dim", "short_conv_kernel_size")
    return State(channels=3 * heads * width, kernel=kernel, values=heads * width * width)


def _short_convolution(numbers: Numbers, _: Mapping[str, Any]) -> State:
    return State(channels=numbers.need("hidden_size"), kernel=numbers.need("conv_L_cache"))


def _lru(numbers: Numbers, _: Mapping[str, Any]) -> State:
    width = numbers.find("lru_width") or numbers.need("hidden_size")
    return State(channels=width, kernel=numbers.need("conv1d_width"), values=width)


def _lightning(numbers: Numbers, _: Mapping[str, Any]) -> State:
    heads = numbers.need("num_attention_heads")
    width = numbers.find("head_dim") or numbers.need("hidden_size") // heads
    return State(values=heads * width * width)


def _rwkv4(numbers: Numbers, _: Mapping[str, Any]) -> State:
    width = numbers.find("attention_hidden_size") or numbers.need("hidden_size")
    return State(values=2 * numbers.need("hidden_size") + 3 * width)


#: Families by how their state is measured.
_FAMILIES: tuple[tuple[frozenset[str], Callable[[Numbers, Mapping[str, Any]], State]], ...] = (
    (frozenset({"mamba", "falcon_mamba", "jamba"}), _mamba1),
    (
        frozenset({"mamba2", "falcon_h1", "bamba", "granitemoehybrid", "nemotron_h", "zamba2"}),
        _mamba2,
    ),
    (frozenset({"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"}), _delta),
    (frozenset({"kimi_linear"}), _kimi),
    (frozenset({"lfm2", "lfm2_moe"}), _short_convolution),
    (frozenset({"recurrent_gemma"}), _lru),
    (frozenset({"minimax"}), _lightning),
    (frozenset({"rwkv"}), _rwkv4),
)
