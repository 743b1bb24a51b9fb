"""Facts about the committed schemas: they are fresh, and real files satisfy them."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors import safe_open

from qconv.grids import UniformGrid
from qconv.tensors import QuantTensor, save_quant_tensors
from schemas.regenerate import MODELS, write_schemas

COMMITTED = Path(__file__).parents[2] / "schemas"


def test_the_committed_schemas_are_what_the_models_give(tmp_path):
    write_schemas(tmp_path)
    for name in MODELS:
        fresh = (tmp_path / name).read_text(encoding="utf-8")
        committed = (COMMITTED / name).read_text(encoding="utf-8")
        assert fresh == committed, "run: python tests/schemas/regenerate.py schemas"


def test_every_committed_schema_has_a_model():
    assert sorted(path.name for path in COMMITTED.iterdir()) == sorted(MODELS)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_schema_is_a_schema(name):
    schema = json.loads((COMMITTED / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)


def test_a_saved_file_satisfies_its_schema(tmp_path):
    grid = UniformGrid(bits=4, symmetric=True, group_size=16)
    codes, parameters = grid.quantize(torch.ones(2, 16))
    tensor = QuantTensor(grid=grid, codes=codes, parameters=parameters)
    save_quant_tensors(tmp_path / "t", {"w": tensor})
    with safe_open(tmp_path / "t", framework="pt") as file:
        metadata = json.loads(file.metadata()["qconv"])
    schema = json.loads((COMMITTED / "quant-tensor.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(metadata, schema)
    metadata["tensors"]["w"]["rows"] = 0
    with pytest.raises(jsonschema.ValidationError, match="less than the minimum"):
        jsonschema.validate(metadata, schema)
