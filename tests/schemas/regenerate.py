"""Writes the JSON Schemas of what qconv reads: ``python tests/schemas/regenerate.py schemas``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qconv.tensors import QuantTensorMetadata

if TYPE_CHECKING:
    from pydantic import BaseModel

#: Every committed schema and the model it describes.
MODELS: dict[str, type[BaseModel]] = {
    "quant-tensor.schema.json": QuantTensorMetadata,
}


def schema_text(model: type[BaseModel]) -> str:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **model.model_json_schema(),
    }
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def write_schemas(directory: Path) -> None:
    """Write all schemas to ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, model in MODELS.items():
        (directory / name).write_text(schema_text(model), encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
