"""Reports of validations and comparisons: for machines, for CI, and one page for people."""

from __future__ import annotations

from qconv.reports._comparison import write_comparison
from qconv.reports._document import RecordSchema, read_report
from qconv.reports._merge import merge
from qconv.reports._samples import with_texts
from qconv.reports._write import Written, write

__all__ = [
    "RecordSchema",
    "Written",
    "merge",
    "read_report",
    "with_texts",
    "write",
    "write_comparison",
]
