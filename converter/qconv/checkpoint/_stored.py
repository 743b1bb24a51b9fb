"""Where a tensor lies in its file, and how its bytes become values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qconv.checkpoint._mapped import MappedFile
    from qconv.plugin import TensorInfo

#: Plain types: bytes of a value, and the name of the torch dtype. Names as in safetensors, whose
#: list this follows: https://github.com/huggingface/safetensors#format (sub-byte types left out).
PLAIN_TYPES = {
    "BOOL": (1, "bool"),
    "U8": (1, "uint8"),
    "I8": (1, "int8"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"),
    "F8_E8M0": (1, "float8_e8m0fnu"),
    "U16": (2, "uint16"),
    "I16": (2, "int16"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "U32": (4, "uint32"),
    "I32": (4, "int32"),
    "F32": (4, "float32"),
    "U64": (8, "uint64"),
    "I64": (8, "int64"),
    "F64": (8, "float64"),
}

#: Values the gguf library decodes in one call. It makes several copies of them, which should stay
#: in the processor's cache; given many short rows, it takes ten times as long.
_DECODED_AT_ONCE = 256 * 1024


def torch_dtype(info: TensorInfo) -> torch.dtype:
    """The dtype that values of a plain type are stored in; float32 for block types."""
    import torch

    dtype: torch.dtype = getattr(torch, PLAIN_TYPES.get(info.dtype, (4, "float32"))[1])
    return dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor's place in a file, its rows one after the other.

    offset: of the first byte, from the start of the file
    block: consecutive values of a row that are stored together; 1 for plain types
    block_nbytes: bytes of one block
    """

    info: TensorInfo
    file: MappedFile
    offset: int
    block: int
    block_nbytes: int

    @property
    def columns(self) -> int:
        """Values in a row; a scalar is a row of one."""
        return self.info.shape[-1] if self.info.shape else 1

    @property
    def rows(self) -> int:
        """Rows, all but the last dimension flattened; a 1-D tensor is one row."""
        total = 1
        for size in self.info.shape[:-1]:
            total *= size
        return total

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row."""
        return self.columns // self.block * self.block_nbytes

    @property
    def is_plain(self) -> bool:
        """False for block-quantized types."""
        return self.info.dtype in PLAIN_TYPES

    def copy(self, start: int, stop: int) -> torch.Tensor:
        """Blocks ``start:stop``, counted over all rows, as stored: uint8, one dimension."""
        nbytes = (stop - start) * self.block_nbytes
        return self.file.copy(self.offset + start * self.block_nbytes, nbytes)

    def decode(self, raw: torch.Tensor) -> torch.Tensor:
        """Values of whole blocks, one dimension: as stored, or float32 for block types.

        Raises:
            UnreadableInput: an installed library does not know the type.
        """
        import torch

        if not self.is_plain:
            return torch.from_numpy(self._dequantize(raw.numpy()))
        name = PLAIN_TYPES[self.info.dtype][1]
        if name == "bool":
            return raw.ne(0)
        dtype = getattr(torch, name, None)
        if dtype is None:
            raise self._undecodable(f"torch {torch.__version__}")
        return raw.view(dtype)

    def _dequantize(self, raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        import gguf
        import numpy as np

        kind = gguf.GGMLQuantizationType[self.info.dtype]
        blocks = raw.reshape(-1, self.block_nbytes)
        values = np.empty((len(blocks), self.block), dtype=np.float32)
        step = max(1, _DECODED_AT_ONCE // self.block)
        for start in range(0, len(blocks), step):
            piece = blocks[start : start + step].reshape(1, -1)
            try:
                # Damaged scales may be NaN or infinite; they decode to what they say.
                with np.errstate(all="ignore"):
                    decoded = gguf.quants.dequantize(piece, kind)
            except NotImplementedError as error:
                raise self._undecodable("the gguf library") from error
            values[start : start + step] = decoded.reshape(-1, self.block)
        return values.reshape(-1)

    def _undecodable(self, library: str) -> UnreadableInput:
        return UnreadableInput(
            f"{self.file.path}: tensor {self.info.name!r}: {library} cannot decode type "
            f"{self.info.dtype}; use a source of another type, or a newer version of the library"
        )
