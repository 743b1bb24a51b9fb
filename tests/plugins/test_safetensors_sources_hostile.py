"""Whatever a config or header claims, a source refuses it in words, or decodes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors_encoders import (
    COLUMNS,
    ROWS,
    X,
    awq_config,
    awq_tensors,
    compressed,
    decoded,
    gptq_config,
    gptq_tensors,
    int_weights,
    packed_tensors,
    random_scales,
    state_bytes,
)

from qconv.errors import UnreadableInput, Unsupported

Checkpoint = tuple[dict[str, torch.Tensor], dict[str, Any]]


def packed() -> Checkpoint:
    zero = torch.full((ROWS, 2), 7)
    return packed_tensors(4, random_scales(ROWS, 2), zero)[0], compressed(
        int_weights(4, symmetric=False)
    )


def plain() -> Checkpoint:
    inputs = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 16]}
    tensors = {
        f"{X}.weight": torch.ones(ROWS, COLUMNS).to(torch.float8_e4m3fn),
        f"{X}.weight_scale": random_scales(2, 4),
        f"{X}.input_scale": torch.ones(1),
    }
    return tensors, compressed(weights, format="float-quantized", input_activations=inputs)


def gptq() -> Checkpoint:
    tensors, _, _ = gptq_tensors(4, torch.full((ROWS, 2), 8), less=1)
    return tensors, gptq_config(dynamic={"+:x": {"bits": 8}})


def awq() -> Checkpoint:
    return awq_tensors()[0], awq_config(modules_to_not_convert=["lm_head"])


def fp8() -> Checkpoint:
    tensors = {
        f"{X}.weight": torch.ones(ROWS, COLUMNS).to(torch.float8_e4m3fn),
        f"{X}.weight_scale_inv": random_scales(2, 4),
    }
    config = {"quant_method": "fp8", "weight_block_size": [16, 16], "fmt": "e4m3"}
    return tensors, {**config, "activation_scheme": "dynamic", "modules_to_not_convert": ["x"]}


def bitsandbytes() -> Checkpoint:
    from qconv.grids import CodebookGrid

    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [ROWS, COLUMNS]}
    tensors = {
        f"{X}.weight": torch.zeros(ROWS * COLUMNS // 2, 1, dtype=torch.uint8),
        f"{X}.weight.absmax": torch.ones(ROWS),
        f"{X}.weight.quant_map": CodebookGrid(codebook="nf4").table(),
        f"{X}.weight.quant_state.bitsandbytes__nf4": state_bytes(state),
    }
    return tensors, {"quant_method": "bitsandbytes"}


FAMILIES: dict[str, Callable[[], Checkpoint]] = {
    each.__name__: each for each in (packed, plain, gptq, awq, fp8, bitsandbytes)
}

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "re:(", "group", "tensor", "block", "channel", "token", "float", "int"])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a JSON value but the method."""
    if not isinstance(value, dict):
        return []
    found = []
    for key, inner in value.items():
        if key != "quant_method":
            found += [(*path, key), *places(inner, (*path, key))]
    return found


def put(value: dict[str, Any], path: tuple[Any, ...], new: Any) -> dict[str, Any]:
    inner = put(value[path[0]], path[1:], new) if len(path) > 1 else new
    return {**value, path[0]: inner}


def refusal(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> str:
    """Why a checkpoint is refused; empty where it is decoded."""
    try:
        decoded(tensors, config)
    except (UnreadableInput, Unsupported) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoints_are_sound_to_begin_with(family: str) -> None:
    assert len(decoded(*FAMILIES[family]())) == 1


@pytest.mark.parametrize("family", [each for each in FAMILIES if each != "bitsandbytes"])
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_config_of_anything_is_refused_or_read(family: str, data: st.DataObject) -> None:
    tensors, config = FAMILIES[family]()
    for _ in range(data.draw(st.integers(1, 2))):
        config = put(config, data.draw(st.sampled_from(places(config))), data.draw(JSON))
    assert len(refusal(tensors, config)) < 600  # what a message repeats is cut


@settings(deadline=None, max_examples=150)
@given(value=st.dictionaries(st.sampled_from(["quant_type", "blocksize", "shape"]), JSON))
def test_a_state_of_anything_is_refused_or_read(value: dict[str, Any]) -> None:
    tensors, config = bitsandbytes()
    state = {"quant_type": "nf4", "blocksize": 64, "shape": [ROWS, COLUMNS], **value}
    tensors[f"{X}.weight.quant_state.bitsandbytes__nf4"] = state_bytes(state)
    assert len(refusal(tensors, config)) < 600  # what a message repeats is cut


DTYPES = (torch.float32, torch.float16, torch.int32, torch.int64, torch.int8, torch.uint8)


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_tensors_of_anything_are_refused_or_read(family: str, data: st.DataObject) -> None:
    tensors, config = FAMILIES[family]()
    name = data.draw(st.sampled_from(sorted(tensors)))
    if data.draw(st.booleans()):
        del tensors[name]
    else:
        shape = data.draw(st.lists(st.integers(0, 9), max_size=3) | st.just(tensors[name].shape))
        dtype = data.draw(st.sampled_from(DTYPES) | st.just(tensors[name].dtype))
        fill = data.draw(st.sampled_from([0, 1, 127]))
        tensors[name] = torch.full(tuple(shape), fill).to(dtype)
    assert len(refusal(tensors, config)) < 600  # what a message repeats is cut
