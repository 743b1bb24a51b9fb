"""Reads GGUF files back through the ``gguf`` library, independently of the writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput, Unsupported
from qconv.plugin import TensorInfo

if TYPE_CHECKING:
    import torch

#: Types that the library hands out as numbers already.
_PLAIN = frozenset({"I8", "I16", "I32", "I64", "F64"})


class GgufReader:
    """An opened GGUF file: tensors decoded on demand; memory is one tensor in float32."""

    def __init__(self, path: Path) -> None:
        """Map the file and read its table.

        Raises:
            UnreadableInput: the file is missing, or not a sound GGUF file.
        """
        import gguf

        try:
            self._file = gguf.GGUFReader(path)
        except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
            raise UnreadableInput(
                f"{path}: not a sound GGUF file ({error}); write it again"
            ) from error
        self._entries = {entry.name: entry for entry in self._file.tensors}
        self._tensors = {name: _info(entry) for name, entry in self._entries.items()}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name."""
        return self._tensors

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata, decoded to plain Python values."""
        return {key: field.contents() for key, field in self._file.fields.items()}

    def read(self, name: str) -> torch.Tensor:
        """Decode one tensor: float32, shape outermost first.

        Raises:
            Unsupported: the gguf library does not decode the tensor's type.
        """
        import gguf
        import numpy as np
        import torch

        entry = self._entries[name]
        if entry.tensor_type.name in _PLAIN:
            values = entry.data
        else:
            try:
                values = gguf.quants.dequantize(entry.data, entry.tensor_type)
            except NotImplementedError as error:
                raise Unsupported(
                    f"tensor {name!r}: {error}; read it with llama.cpp instead"
                ) from error
        floats = np.array(values, dtype=np.float32)  # a copy: the map may go
        return torch.from_numpy(floats).reshape(self._tensors[name].shape)


def _info(entry: Any) -> TensorInfo:  # noqa: ANN401 -- gguf.ReaderTensor, untyped
    return TensorInfo(
        name=entry.name,
        shape=tuple(int(size) for size in reversed(entry.shape)),
        dtype=entry.tensor_type.name,
        nbytes=int(entry.n_bytes),
    )
