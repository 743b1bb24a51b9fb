"""A block's tensors in memory, read as if they were still in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qconv.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSource:
    """The tensors of a block, as transforms left them, and all others as stored.

    tensors: by source name, float32, shaped as stored
    changed: names of those that transforms changed
    """

    checkpoint: Checkpoint
    tensors: Mapping[str, torch.Tensor]
    changed: frozenset[str] = frozenset()

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop``, (stop - start, last dimension); a view, which nobody modifies."""
        tensor = self.tensors.get(name)
        if tensor is None:
            return self.checkpoint.read_rows(name, start, stop)
        return tensor.reshape(-1, tensor.shape[-1])[start:stop]

    def read_raw(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows as stored; those of a changed tensor are rounded to the dtype it was stored in."""
        import torch

        from qconv.checkpoint import torch_dtype

        if name not in self.changed:
            return self.checkpoint.read_raw(name, start, stop)
        dtype = torch_dtype(self.checkpoint.model.tensors[name])
        return self.read_rows(name, start, stop).to(dtype).contiguous().view(torch.uint8)
