"""``genai_config.json``, with which onnxruntime-genai generates text from a decoder's graph.

Keys: https://onnxruntime.ai/docs/genai/reference/config.html. The type ``decoder`` is for any model
that takes tokens, a mask, positions, and keys and values of earlier tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qconv.plugin import ModelInfo

FILE = "genai_config.json"

#: The first of these in config.json is the most tokens a text may have.
_CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")

_KEY, _VALUE = "past_key_values.%d.key", "past_key_values.%d.value"


def genai_config(model: ModelInfo, graph: bytes, graph_file: str) -> bytes | None:
    """The file for a graph with keys and values; None where the conventions do not hold.

    graph: serialized ModelProto

    They do not hold for a graph without keys and values, layers whose keys differ in shape, and a
    config that does not say where texts end or how long they may be.
    """
    import onnx

    proto = onnx.load_model_from_string(graph).graph
    inputs = {
        each.name: [size.dim_value for size in each.type.tensor_type.shape.dim]
        for each in proto.input
    }
    layers = sum(_KEY % number in inputs for number in range(len(inputs)))
    kept = {tuple(shape) for name, shape in inputs.items() if name.startswith("past_key_values.")}
    ends = _settings(model).get("eos_token_id")
    context = next((model.config[key] for key in _CONTEXT if key in model.config), None)
    if len(kept) != 1 or ends is None or not isinstance(context, int):
        return None
    ((_, heads, _, size),) = kept
    decoder = {
        "filename": graph_file,
        "head_size": size,
        "hidden_size": _first(model.config, ("hidden_size", "n_embd", "d_model"), heads * size),
        "inputs": {
            **{name: name for name in inputs if not name.startswith("past_key_values.")},
            "past_key_names": _KEY,
            "past_value_names": _VALUE,
        },
        "num_attention_heads": _first(model.config, ("num_attention_heads", "n_head"), heads),
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "session_options": {"provider_options": []},
    }
    whole = {
        "model": {
            "context_length": context,
            "decoder": decoder,
            "type": "decoder",
            "vocab_size": model.config.get("vocab_size"),
            **_tokens(_settings(model)),
        },
        "search": {"do_sample": False, "max_length": context, "past_present_share_buffer": False},
    }
    return (json.dumps(whole, indent=2, sort_keys=True) + "\n").encode()


def _first(config: Mapping[str, Any], keys: tuple[str, ...], otherwise: int) -> int:
    found = next((config[key] for key in keys if isinstance(config.get(key), int)), otherwise)
    return int(found)


def _settings(model: ModelInfo) -> dict[str, Any]:
    """What is said of special tokens: by generation_config.json, or else by config.json."""
    try:
        generation = json.loads(model.files.get("generation_config.json", b"{}"))
    except ValueError:
        generation = {}
    own = generation if isinstance(generation, dict) else {}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    found = {name: _ids(own.get(name)) or _ids(model.config.get(name)) for name in names}
    return {name: ids[0] if len(ids) == 1 else ids for name, ids in found.items() if ids}


def _ids(said: object) -> list[int]:
    """Token ids: one, or several."""
    every = said if isinstance(said, list) else [said]
    return [each for each in every if type(each) is int]  # and not bool


def _tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens; where none is for padding, the (first) end of text is."""
    ends = settings["eos_token_id"]
    return {"pad_token_id": ends[0] if isinstance(ends, list) else ends, **settings}
