"""FP8 and 4-bit codebook checkpoints decode to what their formats say, value by value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors_encoders import decoded, encoded, random_codes, random_scales, state_bytes

from qconv.errors import UnreadableInput, Unsupported

ROWS, COLUMNS = 192, 320  # neither is a multiple of 128
X = "model.layers.0.mlp.up_proj"


def fp8_weight(seed: int = 0) -> torch.Tensor:
    """Every value of FP8 but NaN."""
    codes = random_codes(ROWS, COLUMNS, 8, seed).to(torch.uint8)
    codes[(codes & 127) == 127] = 0
    return codes.view(torch.float8_e4m3fn)


def fp8_values(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """``weight * scale``, block by block: float32."""
    out = torch.empty(weight.shape)
    for top in range(0, weight.shape[0], block[0]):
        for left in range(0, weight.shape[1], block[1]):
            at = slice(top, top + block[0]), slice(left, left + block[1])
            out[at] = weight[at].float() * scale[top // block[0], left // block[1]].float()
    return out


# --- FP8 as DeepSeek and Qwen publish it ----------------------------------------------------------


def fp8_config(**changes: Any) -> dict[str, Any]:
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"],
        **changes,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_decode(dtype: torch.dtype) -> None:
    weight, scale = fp8_weight(), random_scales(2, 3, dtype=dtype)
    tensors = {f"{X}.weight": weight, f"{X}.weight_scale_inv": scale}
    found = decoded({**tensors, "lm_head.weight": torch.ones(4, 4)}, fp8_config())
    assert list(found) == [f"{X}.weight"]
    value = found[f"{X}.weight"]
    assert torch.equal(value.dequantize(), fp8_values(weight, scale, (128, 128)))
    assert value.activation is not None
    assert value.activation.spec()["group_size"] == 128


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("suffix", ["weight_scale", "weight_scale_inv"])
def test_one_scale_per_tensor_decodes(suffix: str, shape: tuple[int, ...]) -> None:
    weight, scale = fp8_weight(), torch.tensor(0.0123)
    tensors = {f"{X}.weight": weight, f"{X}.{suffix}": scale.reshape(shape)}
    found = decoded(tensors, fp8_config(weight_block_size=None))[f"{X}.weight"]
    assert torch.equal(found.dequantize(), weight.float() * scale)


@pytest.mark.parametrize("suffix", ["input_scale", "activation_scale"])
def test_a_static_input_scale_is_a_parameter(suffix: str) -> None:
    tensors = {
        f"{X}.weight": fp8_weight(),
        f"{X}.weight_scale": torch.tensor(0.5),
        f"{X}.{suffix}": torch.tensor(0.25),
    }
    config = fp8_config(weight_block_size=None, activation_scheme="static")
    found = decoded(tensors, config)[f"{X}.weight"]
    assert found.activation_parameters["scale"].tolist() == [0.25]


BAD_FP8: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "kind": (Unsupported, r"fmt 'e5m2' is not decoded, only e4m3", {"fmt": "e5m2"}),
    "scheme": (UnreadableInput, r"activation_scheme is 'none', but", {"activation_scheme": "none"}),
    "static": (UnreadableInput, r"input_scale': missing, but", {"activation_scheme": "static"}),
    "block": (
        UnreadableInput,
        r"weight_block_size is \[0, 128\], but must be a list of 2 whole numbers from 1 to 65536",
        {"weight_block_size": [0, 128]},
    ),
    "other blocks": (
        UnreadableInput,
        r"weight_scale_inv': shape \(2, 3\), but .* demand \(3, 5\)",
        {"weight_block_size": [64, 64]},
    ),
    "left out": (
        UnreadableInput,
        r"stored in FP8, but config\.json's modules_to_not_convert",
        {"modules_to_not_convert": ["model.layers.0"]},
    ),
}


@pytest.mark.parametrize("case", BAD_FP8)
def test_bad_fp8_is_refused(case: str) -> None:
    error, message, changes = BAD_FP8[case]
    tensors = {f"{X}.weight": fp8_weight(), f"{X}.weight_scale_inv": random_scales(2, 3)}
    with pytest.raises(error, match=message):
        encoded(tensors, fp8_config(**changes))


def test_fp8_without_a_scale_is_refused() -> None:
    with pytest.raises(UnreadableInput, match=r"weight_scale_inv': missing, but"):
        encoded({f"{X}.weight": fp8_weight()}, fp8_config())


def test_a_scale_without_fp8_is_refused() -> None:
    tensors = {f"{X}.weight": torch.ones(4, 4), f"{X}.weight_scale_inv": random_scales(2, 3)}
    with pytest.raises(UnreadableInput, match=r"weight': F32 \(4, 4\), but must be F8_E4M3 of 2"):
        encoded(tensors, fp8_config())


def test_the_other_fp8_is_refused() -> None:
    tensors = {
        f"{X}.weight": torch.ones(128, 128).to(torch.float8_e5m2),
        f"{X}.weight_scale_inv": random_scales(1, 1),
    }
    with pytest.raises(
        UnreadableInput, match=r"weight': F8_E5M2 \(128, 128\), but must be F8_E4M3"
    ):
        encoded(tensors, fp8_config())


def test_fused_experts_in_fp8_are_refused() -> None:
    tensors = {"model.layers.0.mlp.experts.gate_up_proj": fp8_weight()}
    with pytest.raises(Unsupported, match=r"gate_up_proj': FP8 values that are no module's weight"):
        encoded(tensors, fp8_config())


def test_values_that_are_not_numbers_are_refused() -> None:
    weight = fp8_weight()
    weight.view(torch.uint8)[0, :2] = torch.tensor([0x7F, 0xFF], dtype=torch.uint8)
    tensors = {f"{X}.weight": weight, f"{X}.weight_scale_inv": random_scales(2, 3)}
    with pytest.raises(UnreadableInput, match=r"2 of its values are not numbers \(NaN\)"):
        decoded(tensors, fp8_config())


# --- FP8 in compressed-tensors --------------------------------------------------------------------


def compressed(stored: str = "float-quantized", inputs: Any = None, **changes: Any) -> Any:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", **changes}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": stored,
        "config_groups": {"group_0": group},
    }


INPUTS = {"num_bits": 8, "type": "float", "symmetric": True}

SCOPES: dict[str, tuple[tuple[int, ...], tuple[int, int], dict[str, Any]]] = {
    "channel": ((ROWS, 1), (1, COLUMNS), {}),
    "tensor": ((1,), (ROWS, COLUMNS), {"strategy": "tensor"}),
    "block": ((2, 3), (128, 128), {"strategy": "block", "block_structure": [128, 128]}),
}


@pytest.mark.parametrize("stored", ["float-quantized", "naive-quantized"])
@pytest.mark.parametrize("scope", SCOPES)
def test_compressed_fp8_decodes(scope: str, stored: str) -> None:
    shape, block, changes = SCOPES[scope]
    weight, scale = fp8_weight(), random_scales(*shape, dtype=torch.bfloat16)
    tensors = {f"{X}.weight": weight, f"{X}.weight_scale": scale}
    inputs = {**INPUTS, "strategy": "token", "dynamic": True}
    found = decoded(tensors, compressed(stored, inputs, **changes))[f"{X}.weight"]
    grouped = scale if scale.dim() == 2 else scale.view(1, 1)
    assert torch.equal(found.dequantize(), fp8_values(weight, grouped, block))
    assert found.activation is not None
    assert found.activation.spec()["kind"] == "float"


def test_compressed_fp8_has_inputs_by_group() -> None:
    tensors = {f"{X}.weight": fp8_weight(), f"{X}.weight_scale": random_scales(ROWS, 1)}
    inputs = {**INPUTS, "strategy": "group", "group_size": 64, "dynamic": True}
    found = decoded(tensors, compressed(inputs=inputs))[f"{X}.weight"]
    assert found.activation is not None
    assert found.activation.spec()["group_size"] == 64


def test_compressed_fp8_has_static_inputs() -> None:
    tensors = {
        f"{X}.weight": fp8_weight(),
        f"{X}.weight_scale": random_scales(ROWS, 1),
        f"{X}.input_scale": torch.tensor([0.5], dtype=torch.bfloat16),
    }
    inputs = {**INPUTS, "strategy": "tensor", "dynamic": False}
    found = decoded(tensors, compressed(inputs=inputs))[f"{X}.weight"]
    assert found.activation_parameters["scale"].tolist() == [0.5]


def test_compressed_fp8_by_group_is_refused() -> None:
    tensors = {f"{X}.weight": fp8_weight(), f"{X}.weight_scale": random_scales(ROWS, COLUMNS // 64)}
    with pytest.raises(Unsupported, match=r"FP8 weights with a scale per group are not decoded"):
        encoded(tensors, compressed(strategy="group", group_size=64))


# --- bitsandbytes ---------------------------------------------------------------------------------

NF4 = (
    "-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 "
    "-0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 "
    "0.24611230194568634 0.33791524171829224 0.44070982933044434 0.5626170039176941 "
    "0.7229568362236023 1.0"
)
#: bitsandbytes' FP4, as written in its kernels.
FP4 = "0 0.005208333333 0.66666667 1 0.33333333 0.5 0.16666667 0.25"


def table(kind: str) -> torch.Tensor:
    if kind == "nf4":
        return torch.tensor([float(value) for value in NF4.split()])
    positive = torch.tensor([float(value) for value in FP4.split()])
    return torch.cat([positive, -positive])


def four_bit(
    kind: str = "nf4", *, nested: bool = False, block: int = 64, **state: Any
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Stored tensors, and what they stand for value by value."""
    codes = random_codes(ROWS, COLUMNS, 4)
    blocks = ROWS * COLUMNS // block
    flat = codes.flatten().tolist()
    data = [16 * flat[i] + flat[i + 1] for i in range(0, len(flat), 2)]
    name = f"{X}.weight"
    tensors = {
        name: torch.tensor(data, dtype=torch.uint8).view(-1, 1),
        f"{name}.quant_map": table(kind),
    }
    values = {
        "quant_type": kind,
        "blocksize": block,
        "dtype": "bfloat16",
        "shape": [ROWS, COLUMNS],
    }
    if nested:
        from qconv.grids import CodebookGrid

        dynamic = CodebookGrid(codebook="nf4", double_quant=True).nested_table()
        absmax_codes = random_codes(1, blocks, 8, seed=3)[0]
        scales = random_scales(-(-blocks // 256), dtype=torch.float32)
        tensors[f"{name}.absmax"] = absmax_codes.to(torch.uint8)
        tensors[f"{name}.nested_absmax"] = scales
        tensors[f"{name}.nested_quant_map"] = dynamic
        values |= {
            "nested_blocksize": 256,
            "nested_dtype": "float32",
            "nested_offset": 0.03125,
        }
        absmax = torch.stack(
            [dynamic[absmax_codes[i]] * scales[i // 256] + 0.03125 for i in range(blocks)]
        )
    else:
        absmax = random_scales(blocks, dtype=torch.float32)
        tensors[f"{name}.absmax"] = absmax
    tensors[f"{name}.quant_state.bitsandbytes__{kind}"] = state_bytes({**values, **state})
    expected = table(kind)[codes] * absmax.repeat_interleave(block).view(ROWS, COLUMNS)
    return tensors, expected


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codebooks_decode(kind: str, nested: bool) -> None:
    tensors, expected = four_bit(kind, nested=nested)
    found = decoded({**tensors, "lm_head.weight": torch.ones(4, 4)}, BNB)
    assert list(found) == [f"{X}.weight"]
    assert torch.equal(found[f"{X}.weight"].dequantize(), expected)


def test_codes_may_be_stored_in_another_dtype() -> None:
    tensors, expected = four_bit()
    tensors[f"{X}.weight"] = tensors[f"{X}.weight"].view(-1).view(torch.bfloat16).view(-1, 1)
    assert torch.equal(decoded(tensors, BNB)[f"{X}.weight"].dequantize(), expected)


def test_a_nested_table_may_differ_by_rounding() -> None:
    tensors, expected = four_bit(nested=True)
    tensors[f"{X}.weight.nested_quant_map"] *= 1 + 2**-23
    assert torch.equal(decoded(tensors, BNB)[f"{X}.weight"].dequantize(), expected)


BAD_STATES: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "kind": (UnreadableInput, r"quant_type is 'fp4', but must be 'nf4'", {"quant_type": "fp4"}),
    "block": (UnreadableInput, r"blocksize is '64', but must be a whole", {"blocksize": "64"}),
    "odd block": (Unsupported, r"in blocks of 48 is not decoded", {"blocksize": 48}),
    "blocks over rows": (Unsupported, r"in blocks of 128 is not decoded", {"blocksize": 128}),
    "no shape": (UnreadableInput, r"shape is None, but must be rows and col", {"shape": None}),
    "shape": (UnreadableInput, r"shape is \[-192, -320\], but must", {"shape": [-192, -320]}),
    "other shape": (
        UnreadableInput,
        r"up_proj\.weight': 30720 bytes, but 192 x 640 codes",
        {"shape": [192, 640]},
    ),
    "huge": (
        UnreadableInput,
        r"shape is \[2147483647, .* must be rows",
        {"shape": [2**31 - 1] * 2},
    ),
    "no matrix": (Unsupported, r"shape \[2, 96, 320\] in blocks of 64 is", {"shape": [2, 96, 320]}),
    "offset": (
        UnreadableInput,
        r"nested_offset is nan, but must be a finite",
        {"nested_offset": float("nan")},
    ),
    "nested": (
        UnreadableInput,
        r"nested_blocksize is 64, but must be 256",
        {"nested_blocksize": 64},
    ),
    "nested scales": (UnreadableInput, r"absmax': F32 .* must be U8", {"nested_offset": 0.5}),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_bad_states_are_refused(case: str) -> None:
    error, message, changes = BAD_STATES[case]
    tensors, _ = four_bit(**changes)
    with pytest.raises(error, match=message):
        encoded(tensors, BNB)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", r"is no JSON"),
        (b"[" * 4000, r"is no JSON"),
        (b"[1]", r"must be a JSON object"),
        (b"\xff", r"is no JSON"),
        (b" " * 5000, r"5000 bytes are too many for a quantization state"),
    ],
)
def test_a_damaged_state_is_refused(data: bytes, message: str) -> None:
    tensors, _ = four_bit()
    name = f"{X}.weight.quant_state.bitsandbytes__nf4"
    tensors[name] = torch.tensor(list(data), dtype=torch.uint8)
    with pytest.raises(UnreadableInput, match=message):
        encoded(tensors, BNB)


def test_states_of_two_kinds_are_refused() -> None:
    tensors, _ = four_bit()
    name = f"{X}.weight.quant_state.bitsandbytes__"
    tensors[f"{name}fp4"] = tensors[f"{name}nf4"]
    with pytest.raises(UnreadableInput, match=r"has states of both nf4 and fp4"):
        encoded(tensors, BNB)


@pytest.mark.parametrize("which", ["quant_map", "nested_quant_map"])
def test_other_tables_are_refused(which: str) -> None:
    tensors, _ = four_bit(nested=True)
    tensors[f"{X}.weight.{which}"] = tensors[f"{X}.weight.{which}"] * 1.01
    with pytest.raises(Unsupported, match=r"codes stand for other values than bitsandbytes' own"):
        decoded(tensors, BNB)


def test_8_bit_weights_are_refused() -> None:
    tensors = {f"{X}.weight": torch.ones(4, 4, dtype=torch.int8), f"{X}.SCB": torch.ones(4)}
    with pytest.raises(Unsupported, match=r"8-bit weights \(LLM\.int8\) are not decoded"):
        encoded(tensors, {"quant_method": "bitsandbytes", "load_in_8bit": True})
