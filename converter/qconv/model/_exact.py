"""Arithmetic on CUDA that gives the same bits again: float32 as float32, no sums in any order.

Torch's settings are the process', so they are changed around what must be exact, and put back.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: cuBLAS gives the same bits again only with a workspace of its own; torch looks for this when an
#: operation must be deterministic: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

#: What torch says of an operation that it has in one form only.
_NOTHING_ELSE = ".*(does not have a deterministic implementation|non-deterministic algorithm).*"


@contextmanager
def exact_arithmetic(device: torch.device | None) -> Iterator[None]:
    """On CUDA: no TF32, and of every operation the form that is deterministic, where it has one.

    Nothing changes for other devices, or None: there is nothing to change on a CPU.
    """
    if device is None or device.type != "cuda":
        yield
        return
    os.environ.setdefault(*_WORKSPACE)
    was = _Settings.now()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _NOTHING_ELSE, UserWarning)
        try:
            _Settings().take()
            yield
        finally:
            was.take()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """Of torch; those that are exact by default.

    matmul_tf32, cudnn_tf32: multiply float32 in 10 bits
    benchmark: choose among convolutions by their time, so not always the same
    deterministic, warn_only: operations that have no such form are used all the same
    fill: memory that nobody has written to yet is filled, which finds faults and takes time
    """

    matmul_tf32: bool = False
    cudnn_tf32: bool = False
    benchmark: bool = False
    deterministic: bool = True
    warn_only: bool = True
    fill: bool = False

    @classmethod
    def now(cls) -> _Settings:
        """As they are."""
        import torch

        memory: Any = torch.utils.deterministic
        return cls(
            matmul_tf32=_allows_tf32(torch.backends.cuda.matmul),
            cudnn_tf32=_allows_tf32(torch.backends.cudnn, "conv"),
            benchmark=torch.backends.cudnn.benchmark,
            deterministic=torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            fill=memory.fill_uninitialized_memory,
        )

    def take(self) -> None:
        """Set them so."""
        import torch

        memory: Any = torch.utils.deterministic
        torch.backends.cuda.matmul.allow_tf32 = self.matmul_tf32
        torch.backends.cudnn.allow_tf32 = self.cudnn_tf32
        torch.backends.cudnn.benchmark = self.benchmark
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        memory.fill_uninitialized_memory = self.fill


def _allows_tf32(owner: Any, part: str | None = None) -> bool:
    """By either of the ways that torch has for it: from 2.9 on, each refuses what the other set."""
    try:
        return bool(owner.allow_tf32)
    except RuntimeError:
        newer = owner if part is None else getattr(owner, part)
        return bool(newer.fp32_precision == "tf32")


@contextmanager
def exact_gradients(device: torch.device) -> Iterator[None]:
    """Attention within, whose gradients have the same bits again.

    That of torch's fused kernels on CUDA is added up in any order; the plain form, of two products,
    holds the weights of all pairs of tokens.
    """
    if device.type != "cuda":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield
