"""``report.json``: a validation as it is written and read back, and the schema of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from qconv.errors import UnreadableInput
from qconv.validation import Validation

if TYPE_CHECKING:
    from pydantic_core import core_schema


class RecordSchema(GenerateJsonSchema):
    """The JSON Schema of records: numbers that are not finite are told as text."""

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        """A number, or the name of one that JSON does not have."""
        return {
            "anyOf": [
                super().float_schema(schema),
                {"enum": ["NaN", "Infinity", "-Infinity"], "type": "string"},
            ]
        }


def json_text(document: Any) -> str:  # noqa: ANN401 - what json.dumps takes
    """A document as it stands in a file."""
    return json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def read_report(path: Path) -> Validation:
    """The validation that a ``report.json`` holds.

    Raises:
        UnreadableInput: it cannot be read, or is no report.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableInput(
            f"{path}: cannot be read ({error.strerror}); name a report.json"
        ) from error
    try:
        return TypeAdapter(Validation).validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise UnreadableInput(
            f"{path}: no report of a validation: {where}: {first['msg']}; write it again with "
            "'qconv validate --report'"
        ) from error
