"""What the steps of a method chain are, and what they are given. Public by :mod:`qconv.plugin`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

    from qconv.grids import ActivationGrid, Grid
    from qconv.statistics import Statistics
    from qconv.tensors import QuantTensor


class Rounder(Protocol):
    """A step that ends a method chain: it chooses the codes. Called from several threads.

    One with an attribute ``takes_stored`` that is true gets weights that no transform changed in
    the dtype they are stored in, float16 and bfloat16 too.
    """

    def quantize(
        self, weight: torch.Tensor, grid: Grid, statistics: Statistics | None = None
    ) -> QuantTensor:
        """Quantize ``weight`` onto ``grid``.

        weight: (out, in) float32, any device; not modified
        statistics: of the weight's input; None where nothing is known of it, which must do
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Consumer:
    """A linear weight that a fold multiplies column by column.

    name: the source tensor's
    weight: (out, in) float32, as earlier folds left it
    grid: where it will land; None when it stays float
    activation: how its input is quantized at run time; None when it is not
    statistics: of its input, as earlier folds left it; None where no token came through
    """

    name: str
    weight: torch.Tensor
    grid: Grid | None
    activation: ActivationGrid | None
    statistics: Statistics | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fold:
    """A place where a rescaling leaves the block's function as it is, found by probing.

    Channel ``c`` of the producer is divided by ``s[c]``; a consumer's column ``j`` is multiplied
    by ``s[channel_of[j]]``.

    block: the block's name, for messages
    producer: source tensor: a norm's weight, or a linear weight whose rows are the channels
    kind: what the producer is
    producer_weight: (channels,) for a norm, (channels, in) for a linear; float32
    producer_grid: where a linear producer's rows will land
    channel_of: (in,) int64
    """

    block: str
    producer: str
    kind: Literal["norm", "linear"]
    producer_weight: torch.Tensor
    producer_grid: Grid | None
    channels: int
    channel_of: torch.Tensor
    consumers: tuple[Consumer, ...]


class Transform(Protocol):
    """A step before the rounder: it rescales channels so that rounding loses less.

    It only chooses the scales; the host folds them in, and checks that the block still does what
    it did. Called from several threads.
    """

    def scales(self, fold: Fold) -> torch.Tensor | None:
        """The scale of every channel: (channels,) float32, positive and finite; None: leave it."""
        ...


class Block(Protocol):
    """A block of the model as a function of its linear weights, with real inputs to run it on.

    Differentiable in the weights. ``name`` is for messages.
    """

    @property
    def name(self) -> str:
        """The block's name, e.g. ``model.layers.3``."""
        ...

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """The linear weights to be quantized, (out, in) float32, by source name."""
        ...

    @property
    def windows(self) -> int:
        """How many calibration windows there are to run on."""
        ...

    def target(self, window: int) -> torch.Tensor:
        """The float model's states after the block: (tokens, hidden) float32.

        The block may be run on inputs that quantized blocks before it have left.
        """
        ...

    def run(self, window: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The output with ``weights`` in place of the block's own: (tokens, hidden) float32."""
        ...


class BlockRounder(Protocol):
    """A step that ends a method chain and rounds all linear weights of a block together."""

    def quantize_block(
        self,
        block: Block,
        grids: Mapping[str, Grid],
        statistics: Mapping[str, Statistics],
    ) -> Mapping[str, QuantTensor]:
        """Quantize every weight of ``block`` that ``grids`` names onto its grid."""
        ...
