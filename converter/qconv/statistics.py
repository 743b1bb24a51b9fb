"""What calibration leaves of one linear input: public, frozen, and additive.

One Gram matrix ``X^T X / n`` serves every method: GPTQ takes it as the Hessian, AWQ scores a scale
by ``tr((W' - W) G (W' - W)^T)`` without running the model, grids take its diagonal as importance.
Statistics of two sets of tokens add up to those of both, so that calibration may be sharded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qconv.errors import Unsupported, UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["SAMPLE_ROWS", "Statistics", "StatisticsSum"]

#: Input rows kept as they are, for methods that must see how values of one token go together.
SAMPLE_ROWS = 128

#: Columns of one tile of the Gram matrix: only tiles on and above the diagonal are multiplied out,
#: which comes near half the work of the whole product; smaller tiles would slow the product down.
_TILE = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """Sums over the tokens that one linear input has seen. Tensors lie on one device.

    tokens: rows ``x`` seen
    square_sum: (in,) float64, sum of ``x^2``
    abs_sum: (in,) float64, sum of ``|x|``
    low, high: (in,) float32, the least and the greatest value, zero included
    gram_sum: (in, in) float32, sum of ``x x^T``; None where only the diagonal was kept
    sample: (at most SAMPLE_ROWS, in) float32, rows chosen by ``priority``, lowest first
    priority: (sample rows,) int64, a hash of the row's place in the calibration set
    """

    tokens: int
    square_sum: torch.Tensor
    abs_sum: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    gram_sum: torch.Tensor | None
    sample: torch.Tensor
    priority: torch.Tensor

    @property
    def features(self) -> int:
        """Columns of the input."""
        return len(self.high)

    @property
    def abs_max(self) -> torch.Tensor:
        """The largest magnitude: (in,) float32."""
        return (-self.low).maximum(self.high)

    @property
    def gram(self) -> torch.Tensor:
        """``X^T X / n``: (in, in) float32, symmetric; a new tensor.

        Raises:
            Unsupported: only the diagonal was kept.
        """
        if self.gram_sum is None:
            raise Unsupported(
                "these statistics hold the diagonal of the Gram matrix only, but the method needs "
                "all of it; calibrate again with --statistics full, or pass the text itself"
            )
        return self.gram_sum / max(1, self.tokens)

    @property
    def importance(self) -> torch.Tensor:
        """Mean of ``x^2``, the diagonal of the Gram matrix: (in,) float32."""
        return (self.square_sum / max(1, self.tokens)).float()

    @property
    def abs_mean(self) -> torch.Tensor:
        """Mean of ``|x|``: (in,) float32."""
        return (self.abs_sum / max(1, self.tokens)).float()

    def __add__(self, other: Statistics) -> Statistics:
        """The statistics of both sets of tokens.

        Raises:
            UsageError: they are of inputs of different width.
        """
        import torch

        if self.features != other.features:
            raise UsageError(
                f"statistics of {self.features} and of {other.features} features do not add up; "
                "add statistics of one linear input only"
            )
        if not (self.tokens and other.tokens):  # nothing seen is no reason to lose the Gram matrix
            return self if self.tokens else other
        both = self.gram_sum is not None and other.gram_sum is not None
        sample, priority = _lowest(
            torch.cat([self.sample, other.sample]), torch.cat([self.priority, other.priority])
        )
        return Statistics(
            tokens=self.tokens + other.tokens,
            square_sum=self.square_sum + other.square_sum,
            abs_sum=self.abs_sum + other.abs_sum,
            low=torch.minimum(self.low, other.low),
            high=torch.maximum(self.high, other.high),
            gram_sum=self.gram_sum + other.gram_sum if both else None,  # type: ignore[operator]
            sample=sample,
            priority=priority,
        )

    def divided(self, scales: torch.Tensor) -> Statistics:
        """The statistics of ``x / scales``, which is what folding ``scales`` into weights leaves.

        scales: (in,) float32, positive
        """
        gram = self.gram_sum
        return replace(
            self,
            square_sum=self.square_sum / scales.double().square(),
            abs_sum=self.abs_sum / scales.double(),
            low=self.low / scales,
            high=self.high / scales,
            gram_sum=None if gram is None else gram / scales[:, None] / scales[None, :],
            sample=self.sample / scales,
        )

    def without_gram(self) -> Statistics:
        """The same with the diagonal only: ``in`` values instead of ``in * in``."""
        return replace(self, gram_sum=None)

    def to(self, device: torch.device | str, *, copy: bool = False) -> Statistics:
        """The same statistics on ``device``; copy: in memory of their own even if there already."""
        moved = {name: each.to(device, copy=copy) for name, each in self.tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by field name; a Gram matrix that is not there is left out."""
        names = ("square_sum", "abs_sum", "low", "high", "gram_sum", "sample", "priority")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def same(self, other: Statistics) -> bool:
        """True when all numbers are equal, on whichever device."""
        import torch

        mine, theirs = self.tensors(), other.tensors()
        return (
            self.tokens == other.tokens
            and mine.keys() == theirs.keys()
            and all(torch.equal(each, theirs[name].to(each.device)) for name, each in mine.items())
        )


class StatisticsSum:
    """Adds up the statistics of one linear input in place.

    Peak memory: the Gram matrix in float32, one tile row of a product, the rows being added.
    """

    def __init__(
        self, features: int, *, device: torch.device | str = "cpu", gram: bool = True
    ) -> None:
        import torch

        self._tokens = 0
        self._square = torch.zeros(features, dtype=torch.float64, device=device)
        self._abs = torch.zeros(features, dtype=torch.float64, device=device)
        self._low = torch.zeros(features, device=device)
        self._high = torch.zeros(features, device=device)
        self._gram = torch.zeros(features, features, device=device) if gram else None
        self._sample = torch.zeros(0, features, device=device)
        self._priority = torch.zeros(0, dtype=torch.int64, device=device)

    def add(self, rows: torch.Tensor, place: int = 0) -> None:
        """Count ``rows``.

        rows: (tokens, in), any float dtype; not modified
        place: number of the first row in the whole calibration set: it decides on the sample
        """
        import torch

        if not len(rows):
            return
        x = rows.detach().float()
        self._tokens += len(x)
        # Rows added at once are few: float32 sums of them are good to the last bits, and a third
        # of the cost of float64 ones.
        self._square += x.square().sum(0)
        self._abs += x.abs().sum(0)
        low, high = torch.aminmax(x, dim=0)
        self._low = torch.minimum(self._low, low)
        self._high = torch.maximum(self._high, high)
        if self._gram is not None:
            _add_upper(self._gram, x)
        number = torch.arange(place, place + len(x), dtype=torch.int64, device=x.device)
        priority = _hash(number)
        near = priority.argsort()[:SAMPLE_ROWS]
        self._sample, self._priority = _lowest(
            torch.cat([self._sample, x[near]]), torch.cat([self._priority, priority[near]])
        )

    def total(self) -> Statistics:
        """What was added so far; must be asked for once, at the end."""
        if self._gram is not None:
            _mirror(self._gram)
        return Statistics(
            tokens=self._tokens,
            square_sum=self._square,
            abs_sum=self._abs,
            low=self._low,
            high=self._high,
            gram_sum=self._gram,
            sample=self._sample,
            priority=self._priority,
        )


def _add_upper(gram: torch.Tensor, x: torch.Tensor) -> None:
    """Add ``x^T x`` to the tiles of ``gram`` on and above the diagonal."""
    features = len(gram)
    for start in range(0, features, _TILE):
        stop = min(start + _TILE, features)
        gram[start:stop, start:].addmm_(x[:, start:stop].t(), x[:, start:])


def _mirror(gram: torch.Tensor) -> None:
    features = len(gram)
    for start in range(0, features, _TILE):
        stop = min(start + _TILE, features)
        gram[stop:, start:stop] = gram[start:stop, stop:].t()
        tile = gram[start:stop, start:stop]
        tile.copy_(tile.triu() + tile.triu(1).t())


def _lowest(sample: torch.Tensor, priority: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    order = priority.argsort()[:SAMPLE_ROWS]
    return sample[order], priority[order]


def _hash(number: torch.Tensor) -> torch.Tensor:
    """A bijection of int64 without pattern: xorshift-multiply as in splitmix64, non-negative."""
    mixed = number * -7046029254386353131
    mixed = (mixed ^ (mixed >> 30)) * -4658895280553007687
    mixed = (mixed ^ (mixed >> 27)) * -7723592293110705685
    return (mixed ^ (mixed >> 31)) & 0x7FFFFFFFFFFFFFFF
