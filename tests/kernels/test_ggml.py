"""llama.cpp is the judge: equal bytes for every type, kind of weight and kind of importance."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from llama_oracle import TYPES, ggml_quantize
from qconv.kernels.ggml import quantize
from qconv_gguf._packing import pack

ROWS, COLUMNS = 9, 768


def _weights() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    shape = (ROWS, COLUMNS)
    gauss = draw.standard_normal(shape).astype(np.float32)
    sparse = np.where(draw.random(shape) < 0.9, np.float32(0), gauss)
    zeros = np.where(draw.random(shape) < 0.5, np.float32(0), np.float32(-0.0))
    spread = 10.0 ** np.repeat(4 * draw.standard_normal((ROWS, COLUMNS // 16)), 16, axis=1)
    weights = {
        "gauss": gauss * 0.02,
        "heavy-tailed": draw.standard_t(2, shape),
        "sparse": sparse,
        "positive": np.abs(gauss),
        "negative": -np.abs(gauss),
        "zero": np.zeros(shape),
        "signed zeros": zeros,
        "positive and signed zeros": np.where(draw.random(shape) < 0.5, np.abs(gauss), zeros),
        "constant": np.full(shape, 0.3),
        "constant negative": np.full(shape, -0.3),
        "constant rows": np.repeat(gauss[:, :1], COLUMNS, axis=1),
        "half-denormal scales": gauss * 1e-7,
        "below every half": gauss * 1e-12,
        "around the zero threshold": gauss * 1e-15,
        "tiny": gauss * 1e-30,
        "float-denormal scales": gauss * 1e-38,
        "float-denormal": gauss * 1e-42,
        "large": gauss * 1000,
        "integers": np.round(gauss * 3),
        "bfloat16": torch.from_numpy(gauss).bfloat16().float().numpy(),
        "many magnitudes": gauss * spread,
        "far from zero": gauss * 0.01 + 1,
    }
    return {name: np.ascontiguousarray(w, dtype=np.float32) for name, w in weights.items()}


def _importances() -> dict[str, np.ndarray | None]:
    draw = np.random.default_rng(2)
    some = (draw.standard_normal(COLUMNS) ** 2).astype(np.float32)
    return {
        "none": None,
        "some": some,
        "half zero": np.where(draw.random(COLUMNS) < 0.5, np.float32(0), some),
        "nearly all zero": np.where(draw.random(COLUMNS) < 0.97, np.float32(0), some),
        "all zero": np.zeros(COLUMNS, np.float32),
        "heavy-tailed": np.abs(draw.standard_t(1, COLUMNS)).astype(np.float32),
    }


@functools.cache
def _cases() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray | None]]:
    return _weights(), _importances()


def _bytes(name: str, weight: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    codes, parameters = quantize(
        name,
        torch.from_numpy(weight),
        None if importance is None else torch.from_numpy(importance),
    )
    return pack(name, codes, parameters).numpy()


@pytest.mark.parametrize("importance", _importances())
@pytest.mark.parametrize("name", TYPES)
def test_bytes_are_llama_cpps(name, importance):
    weights, importances = _cases()
    for kind, weight in weights.items():
        expected = ggml_quantize(name, weight, importances[importance])
        got = _bytes(name, weight, importances[importance])
        np.testing.assert_array_equal(got, expected, err_msg=f"{name}, {kind}, {importance}")


@pytest.mark.parametrize("name", ["q4_1", "q5_1"])
def test_bytes_are_llama_cpps_when_zero_importances_collapse_the_range(name):
    # Only the column of the smallest magnitude but zero counts: the refit range is rounding noise,
    # and llama.cpp's candidates then lie beyond what its rounding trick can round.
    columns = TYPES[name][1]
    draw = np.random.default_rng(3)
    weight = np.zeros((400, columns), np.float32)
    weight[:, 0] = -1.0661877 * (1 + 1e-4 * draw.random(400))
    weight[:, 26] = -0.00337378 * (1 + draw.random(400))
    importance = draw.random(columns).astype(np.float32)
    importance[[0, 1, 2, 4, 7, 8]] = 0
    importance[26] = 0.0013
    np.testing.assert_array_equal(
        _bytes(name, weight, importance), ggml_quantize(name, weight, importance)
    )


@pytest.mark.parametrize("name", TYPES)
def test_bytes_are_llama_cpps_for_any_number_of_blocks(name):
    block = TYPES[name][1]
    draw = np.random.default_rng(4)
    for rows, blocks in ((1, 1), (1, 63), (64, 1), (5, 13), (1, 65)):
        weight = draw.standard_normal((rows, blocks * block)).astype(np.float32)
        importance = draw.random(blocks * block).astype(np.float32)
        for given in (None, importance):
            np.testing.assert_array_equal(
                _bytes(name, weight, given), ggml_quantize(name, weight, given)
            )
