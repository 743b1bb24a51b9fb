"""Writes the JSON Schemas of what qconv reads and prints: ``make schemas``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from qconv.calibration import CalibrationJson, CalibrationMetadata
from qconv.comparison import Comparison
from qconv.conversion import ConversionJson, TranscodingJson
from qconv.memory import FitJson
from qconv.planning import PlanJson
from qconv.reports import RecordSchema
from qconv.tensors import QuantTensorMetadata
from qconv.validation import Validation

#: Every committed schema and the type it describes.
MODELS: dict[str, type] = {
    "calibration-file.schema.json": CalibrationMetadata,
    "calibration.schema.json": CalibrationJson,
    "comparison.schema.json": Comparison,
    "conversion.schema.json": ConversionJson,
    "fit.schema.json": FitJson,
    "plan.schema.json": PlanJson,
    "quant-tensor.schema.json": QuantTensorMetadata,
    "transcoding.schema.json": TranscodingJson,
    "validation.schema.json": Validation,
}
#: Types that are records, not what their JSON looks like: floats may be told as text.
RECORDS: frozenset[type] = frozenset({Validation})


def schema_text(model: type) -> str:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **TypeAdapter(model).json_schema(schema_generator=_generator(model)),
    }
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def _generator(model: type) -> type[GenerateJsonSchema]:
    return RecordSchema if model in RECORDS else GenerateJsonSchema


def write_schemas(directory: Path) -> None:
    """Write all schemas to ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, model in MODELS.items():
        (directory / name).write_text(schema_text(model), encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
