"""From a GGUF file's metadata to ``config.json``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput, Unsupported

from ._gguf_rope import FACTORS, stated_scaling, tensor_scaling

if TYPE_CHECKING:
    import torch

    from qconv.plugin import ModelInfo

    from ._gguf_keys import Keys

#: llama.cpp's name -> transformers' class. Mistral and others are written as ``llama``, too, which
#: computes the same without their sliding windows, as llama.cpp does.
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_MOST = 2**31 - 1
#: Keys below ``<architecture>.`` that are translated, or say what tensors say, too.
_KNOWN = frozenset(
    {
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "expert_count",
        "expert_used_count",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.attn_factor",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "tensor_data_layout",
        "vocab_size",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A model that llama.cpp and transformers both compute.

    attention_bias, mlp_bias: whether all linear layers of attention and MLP add a bias
    rope_scaling: transformers' ``rope_scaling``; None for none
    """

    name: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    tied: bool
    attention_bias: bool
    mlp_bias: bool

    @property
    def query_bias(self) -> bool:
        """Whether query, key and value add a bias."""
        return self.attention_bias or self.name == "qwen2"

    @property
    def head_norms(self) -> bool:
        """Whether queries and keys are normalized head by head."""
        return self.name == "qwen3"

    @property
    def rotates_neighbours(self) -> bool:
        """Whether rows of queries and keys lie in llama.cpp's order of neighbours."""
        return self.name == "llama"

    def config(self) -> dict[str, Any]:
        """``config.json`` without the ids of special tokens."""
        biases: dict[str, Any] = {"attention_bias": self.attention_bias}
        if self.name == "llama":
            biases["mlp_bias"] = self.mlp_bias
        if self.name == "qwen2":
            biases = {}
        return {
            "architectures": [_CLASSES[self.name]],
            "model_type": self.name,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            **({} if self.rope_scaling is None else {"rope_scaling": self.rope_scaling}),
            "tie_word_embeddings": self.tied,
            **biases,
        }


def read_architecture(
    keys: Keys, model: ModelInfo, read: Callable[[str], torch.Tensor] | None
) -> Architecture:
    """Read the metadata, and where Llama 3's rotation is a tensor, that.

    read: a tensor of the model, whole; None where none can be read

    Raises:
        Unsupported: another architecture, or a feature that is not translated.
        UnreadableInput: a value is missing or impossible.
    """
    name = keys.text("general.architecture")
    if name not in _CLASSES:
        raise Unsupported(
            f"the GGUF file's architecture {name!r} is not translated to a Hugging Face "
            f"checkpoint, only {', '.join(_CLASSES)}; start from the model's own checkpoint, or "
            "write a gguf format"
        )
    _refuse_features(keys, name)
    heads = keys.whole(f"{name}.attention.head_count", 1, _MOST)
    hidden = keys.whole(f"{name}.embedding_length", 1, _MOST)
    head_dim = _head_dim(keys, name, hidden // heads)
    context = keys.whole(f"{name}.context_length", 1, _MOST)
    kv_heads = keys.whole(f"{name}.attention.head_count_kv", 1, _MOST, heads)
    theta = keys.positive(f"{name}.rope.freq_base", 10000.0)
    scaling = stated_scaling(keys, name, context)
    if FACTORS in model.tensors:
        scaling = tensor_scaling(read, theta, head_dim) or scaling
    if heads % kv_heads:
        keys.refuse(f"{name}.attention.head_count_kv", f"a divisor of the {heads} heads")
    return Architecture(
        name=name,
        vocab=_vocab(model),
        hidden=hidden,
        intermediate=keys.whole(f"{name}.feed_forward_length", 1, _MOST),
        layers=keys.whole(f"{name}.block_count", 1, 1 << 16),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=context,
        rms_norm_eps=keys.positive(f"{name}.attention.layer_norm_rms_epsilon"),
        rope_theta=theta,
        rope_scaling=scaling,
        tied="output.weight" not in model.tensors,
        # Qwen2 has no switch for it; were there one, it would have no place in the view
        attention_bias=name != "qwen2" and "blk.0.attn_output.bias" in model.tensors,
        mlp_bias=name == "llama" and "blk.0.ffn_up.bias" in model.tensors,
    )


def _vocab(model: ModelInfo) -> int:
    """Rows of the embedding."""
    info = model.tensors.get("token_embd.weight")
    if info is None or len(info.shape) != 2:
        raise UnreadableInput(
            "the GGUF file has no matrix 'token_embd.weight'; it is no language model, or damaged"
        )
    return info.shape[0]


def _head_dim(keys: Keys, name: str, default: int) -> int:
    size = keys.whole(f"{name}.attention.key_length", 2, _MOST, default)
    values = keys.whole(f"{name}.attention.value_length", 2, _MOST, size)
    rotated = keys.whole(f"{name}.rope.dimension_count", 2, _MOST, size)
    if size % 2 or values != size or rotated != size:
        raise Unsupported(
            f"the GGUF file's heads have {size} features as keys, {values} as values, {rotated} of "
            "them rotated; only heads with all of them equal and even are translated: start from "
            "the model's own checkpoint"
        )
    return size


def _refuse_features(keys: Keys, name: str) -> None:
    experts = keys.whole(f"{name}.expert_count", 0, _MOST, 0)
    if experts:
        raise Unsupported(
            f"the GGUF file is a mixture of {experts} experts, which is not translated to a "
            "Hugging Face checkpoint; start from the model's own checkpoint"
        )
    for key in keys.under(f"{name}."):
        if key.removeprefix(f"{name}.") not in _KNOWN:
            raise Unsupported(
                f"the GGUF file's {key} may change what the model computes and is not translated "
                "to a Hugging Face checkpoint; start from the model's own checkpoint"
            )
    if keys.text(f"{name}.tensor_data_layout", "") not in ("", "Meta AI original pth"):
        keys.refuse(f"{name}.tensor_data_layout", "'Meta AI original pth'")
