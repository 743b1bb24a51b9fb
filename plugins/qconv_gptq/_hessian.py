"""The Gram matrix: checked, put in order, damped, and factored as ``H = U diag(d) U^T``.

U is unit upper triangular. With ``E = decoded - weight``, ``tr(E H E^T)`` is the sum over columns k
of ``d[k]`` times the square of ``E[:, k] + sum over j < k of E[:, j] U[j, k]``. So column k is best
rounded from ``weight[:, k] - sum of E[:, j] U[j, k]``, and what then remains weighs ``d[k]``: the
energy of input k that later inputs do not explain. This is GPTQ (https://arxiv.org/abs/2210.17323)
as LDLQ puts it (https://arxiv.org/abs/2307.13304, theorem 6); no matrix need be inverted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.errors import Unsupported

if TYPE_CHECKING:
    import torch

    from qconv.statistics import Statistics

_log = logging.getLogger("qconv")

#: Damping is raised to at most this: beyond, little of the Gram matrix would be left.
_MOST = 1.0
#: Where raising begins when no damping was asked for.
_LEAST = 1e-6
#: Of the damping, the share that is even over all inputs: it carries those that correlate with much
#: stronger ones, and stands for the energy of those that were never seen.
_EVEN = 0.01

#: Held while torch loads its linear algebra; and the devices for which it has.
_loading = threading.Lock()
_loaded: set[torch.device] = set()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hessian:
    """The Gram matrix, damped and factored, in the order of rounding.

    order: (in,) int64: which column comes when
    energy: (in,) float32, the undamped diagonal
    upper: (in, in) float32, unit upper triangular
    d: (in,) float32, positive
    damp: as applied: more than asked for if it had to be raised
    """

    order: torch.Tensor
    energy: torch.Tensor
    upper: torch.Tensor
    d: torch.Tensor
    damp: float


def gram_of(statistics: Statistics, columns: int) -> torch.Tensor:
    """The Gram matrix of a weight's input: (in, in) float32.

    Raises:
        Unsupported: it was not kept, is of another width, or holds a value that is not finite.
    """
    import torch

    gram = statistics.gram
    if len(gram) != columns:
        raise Unsupported(
            f"the weight has {columns} columns, but its statistics are of {len(gram)} inputs; "
            "pass statistics of the input that this weight multiplies"
        )
    if not bool(torch.isfinite(gram).all()):
        row, column = (~torch.isfinite(gram)).nonzero()[0].tolist()
        raise Unsupported(
            f"the Gram matrix of the weight's input holds {float(gram[row, column])} in row {row}, "
            f"column {column}; it must be finite: calibrate again in float32, without the samples "
            "that overflow"
        )
    return gram


def rounding_order(energy: torch.Tensor, size: int, *, by_activation: bool) -> torch.Tensor:
    """The order of rounding: (in,) int64; columns of one fit stay together.

    Fits follow one another by their strongest input, and columns within a fit by their own, so that
    codes can be stored as if no order had been: a fit's parameters are of neighbouring columns.

    energy: (in,) float32, the diagonal of the Gram matrix
    size: columns per fit
    """
    import torch

    if not by_activation:
        return torch.arange(len(energy), device=energy.device)
    fits = energy.view(-1, size)
    outer = fits.amax(dim=1).argsort(descending=True, stable=True)
    inner = fits.argsort(dim=1, descending=True, stable=True)
    return (outer[:, None] * size + inner[outer]).flatten()


def factor(gram: torch.Tensor, order: torch.Tensor, damp: float) -> Hessian:
    """Factor ``gram`` with rows and columns in ``order``, raising the damping until it works.

    gram: (in, in) float32, symmetric, its diagonal not all zero; not modified
    order: (in,) int64
    damp: to add to each diagonal entry, as a part of it; a hundredth of it as a part of their mean

    Peak memory: two (in, in) float64 and one float32 beside the Gram matrix.

    Raises:
        Unsupported: no damping makes the matrix positive definite.
    """
    import torch

    # Cholesky gives a lower factor; with rows and columns reversed it is the upper one reversed.
    backwards = order.flip(0)
    H = gram[backwards][:, backwards].double()
    energy = H.diagonal().clone()
    _load_linear_algebra(H.device)
    for part in _attempts(damp):
        H.diagonal().copy_(_damped(energy, part))
        lower, failed = torch.linalg.cholesky_ex(H)
        if int(failed):
            continue
        if part > damp:
            _log.warning(
                "gptq: the Gram matrix of %d inputs is not positive definite with damp=%g; "
                "raised to %g",
                len(gram),
                damp,
                part,
            )
        return Hessian(order=order, energy=energy.float().flip(0), damp=part, **_split(lower))
    raise Unsupported(
        f"the Gram matrix of the weight's {len(gram)} inputs is not positive definite with damp up "
        f"to {_MOST:g}, so it is not a sum of squares; calibrate again, or use method rtn"
    )


def _load_linear_algebra(device: torch.device) -> None:
    """Let torch load what it factors with on a GPU, in one thread alone.

    It loads that library with the first call, and two threads at once make it raise "lazy wrapper
    should be called at most once" (torch 2.11, aten/src/ATen/native/cuda/LinearAlgebraStubs.cpp).
    """
    import torch

    if device.type == "cpu":
        return
    with _loading:
        if device not in _loaded:
            torch.linalg.cholesky_ex(torch.eye(1, dtype=torch.float64, device=device))
            _loaded.add(device)


def _damped(energy: torch.Tensor, part: float) -> torch.Tensor:
    """The diagonal with damping; inputs that were never seen get the even share alone."""
    import torch

    even = _EVEN * energy.mean()
    return torch.where(energy > 0, energy * (1.0 + part) + part * even, max(part, _LEAST) * even)


def _split(lower: torch.Tensor) -> dict[str, torch.Tensor]:
    """``upper`` and ``d`` from a Cholesky factor with rows and columns reversed; it is lost."""
    diagonal = lower.diagonal().clone()
    upper = lower.div_(diagonal).float().flip(0, 1)
    return {"upper": upper, "d": diagonal.square().float().flip(0)}


def _attempts(damp: float) -> Iterator[float]:
    yield damp
    while damp < _MOST:
        damp = min(max(damp * 10.0, _LEAST), _MOST)
        yield damp
