"""Which weights of real architectures a safetensors target quantizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from safetensors import safe_open

from qconv_safetensors._roles import counted_blocks, role_of

#: What is no linear of a block in any of these architectures.
OTHERS = ("embed", "norm", "lm_head", "pooler", "project_", "mlp.gate.weight", "moe.gate.weight")


@pytest.mark.parametrize("kind", sorted(set(tiny.CONFIGS) - {"gpt2"}))
def test_linears_of_blocks_are_quantized(kind: str, tmp_path: Path) -> None:
    tiny.save(kind, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    found = {
        name
        for name, shape in shapes.items()
        if role_of(name, shape, counted_blocks(config)).linear
    }
    assert found == {
        name
        for name, shape in shapes.items()
        if len(shape) == 2 and not any(part in name.lower() for part in OTHERS)
    }
    assert found
