"""Quantized tensors, the currency between methods and backends, and their file form."""

from qconv.tensors._carried import carried_over
from qconv.tensors._file import (
    QuantTensorEntry,
    QuantTensorMetadata,
    load_quant_tensors,
    save_quant_tensors,
)
from qconv.tensors._quant_tensor import QuantTensor

__all__ = [
    "QuantTensor",
    "QuantTensorEntry",
    "QuantTensorMetadata",
    "carried_over",
    "load_quant_tensors",
    "save_quant_tensors",
]
