"""Looks into any checkpoint or artifact: what it holds, in which types, and whether it is sound."""

from __future__ import annotations

from qconv.inspection._inspect import inspect
from qconv.inspection._report import Inspection, TensorRow, TypeShare
from qconv.inspection._tokenizer import TokenizerSummary
from qconv.inspection._topology import BlockKind, TopologyInspection, inspect_topology
from qconv.inspection._values import ValueSummary

__all__ = [
    "BlockKind",
    "Inspection",
    "TensorRow",
    "TokenizerSummary",
    "TopologyInspection",
    "TypeShare",
    "ValueSummary",
    "inspect",
    "inspect_topology",
]
