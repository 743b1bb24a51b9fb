"""What a quantized weight becomes on disk: the parts of a layout, known before any value.

A module of ``_layouts`` (or ``_bitsandbytes``) has the two functions of a :class:`PartLayout`:
``parts`` says at planning which tensors a weight ``X.weight`` is stored as, ``pack`` makes those
that hold values, in the same order. Parts with a ``constant`` are not packed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from qconv.grids import ActivationGrid, Grid
    from qconv.tensors import QuantTensor

#: Bytes of one value, by safetensors' name of the dtype.
DTYPE_NBYTES = {
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}

#: safetensors' name of a dtype, by torch's.
STORED_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One stored tensor of a weight ``X.weight``.

    suffix: the stored name is ``X.<suffix>``
    dtype: safetensors' name: ``I32``, ``F8_E4M3``, ...
    by_rows: rows of the weight are consecutive, equally long rows of the part
    rows_together: slabs of such rows begin at a multiple of so many, which share packed words
    constant: the part's bytes, when they do not depend on values; it is not packed then
    """

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    by_rows: bool
    rows_together: int = 1
    constant: bytes | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return prod(self.shape) * DTYPE_NBYTES[self.dtype]

    @property
    def in_header(self) -> bool:
        """Whether it is written with the header, so that slabs of rows need not care for it.

        What follows must stay aligned for the widest dtype, and safetensors allows no gaps.
        """
        return self.constant is not None and self.nbytes % max(DTYPE_NBYTES.values()) == 0


class Parts(Protocol):
    """Says which parts a weight has in a layout."""

    def __call__(
        self,
        name: str,
        shape: tuple[int, int],
        grid: Grid,
        activation: ActivationGrid | None,
        dtype: str,
    ) -> tuple[Part, ...]:
        """The parts of a weight, constants included.

        name: the weight's, ``X.weight``, for messages
        shape: (out, in)
        dtype: torch dtype name that the model computes in, ``bfloat16``

        Raises:
            UnsupportedGrid: the layout cannot hold this grid or shape.
        """
        ...


class Pack(Protocol):
    """Makes the parts of a weight."""

    def __call__(self, name: str, value: QuantTensor, dtype: str) -> list[torch.Tensor]:
        """The parts without a constant, in order, contiguous: a slab's rows if all are by rows.

        Raises:
            UnsupportedGrid: the layout cannot hold a value.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PartLayout:
    """How one layout stores a weight on a grid it can hold."""

    parts: Parts
    pack: Pack
