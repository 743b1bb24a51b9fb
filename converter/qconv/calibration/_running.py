"""Runs the float model on windows: the statistics of every linear input, or how hard a window is.

Peak memory: one block with its statistics, and the hidden states of all windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.errors import GateFailed, Unsupported

if TYPE_CHECKING:
    import torch

    from qconv.calibration._windows import Windows
    from qconv.model import BlockModel, Hidden
    from qconv.statistics import Statistics

#: Told what is being done, how many steps are done, and how many there are.
Progress = Callable[[str, int, int], None]

#: A Gram matrix of fewer tokens than this for each of its columns is mostly noise in the
#: directions that matter least: the sampling error of its spectrum is some sqrt(features / tokens)
#: (Marchenko and Pastur, 1967), which is a half at 4.
ENOUGH_TOKENS = 4


def silent(_words: str, _done: int, _total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStatistics:
    """One distinct input. linears: source names of the linear weights that share it, sorted."""

    linears: tuple[str, ...]
    statistics: Statistics


def collect_statistics(
    model: BlockModel, windows: Windows, *, gram: bool, progress: Progress = silent
) -> Iterator[InputStatistics]:
    """One pass of the float model: every distinct linear input of every block, then the head's.

    Statistics of a part of a set of windows add to those of the others. Take or drop each before
    asking for the next: then only one block's are in memory.

    gram: whole Gram matrices, not only their diagonals
    """
    blocks = len(model.blocks)
    with model.begin(windows.tokens) as hidden:
        # the sample of a part must be what the whole would have taken of it
        hidden.starts = tuple(windows.first_token + start for start in hidden.starts)
        for info in model.blocks:
            progress(info.name, info.index, blocks)
            with model.block(info.index) as live:
                found, _ = live.collect(hidden, gram=gram)
            yield from _distinct(found)
            found.clear()
        progress("head", blocks, blocks)
        yield from _head(model, hidden, gram=gram)


def _distinct(found: Mapping[str, Statistics]) -> Iterator[InputStatistics]:
    """Linears grouped by the statistics they share, in the order of their names."""
    groups: dict[int, list[str]] = {}
    for name, statistics in sorted(found.items()):
        groups.setdefault(id(statistics), []).append(name)
    for names in groups.values():
        yield InputStatistics(linears=tuple(names), statistics=found[names[0]])


def _head(model: BlockModel, hidden: Hidden, *, gram: bool) -> Iterator[InputStatistics]:
    from qconv.statistics import StatisticsSum

    if model.head is None:
        return
    total = StatisticsSum(hidden.width, device=model.device, gram=gram)
    for window, state in enumerate(model.finish(hidden)):
        total.add(state, hidden.starts[window])
    yield InputStatistics(linears=(model.head,), statistics=total.total())


def losses(
    model: BlockModel, windows: Sequence[torch.Tensor], progress: Progress = silent
) -> list[float]:
    """Mean negative log-likelihood of the tokens of every window but its first, in nats.

    Raises:
        Unsupported: the model is an encoder, which predicts no next token.
    """
    if not model.is_decoder or model.head is None:
        raise Unsupported(
            "sampling 'perplexity' needs a model that predicts the next token, and this one is an "
            "encoder; use --sampling random, diverse or length"
        )
    blocks = len(model.blocks)
    with model.begin(windows) as hidden:
        for info in model.blocks:
            progress(f"perplexity, {info.name}", info.index, blocks)
            with model.block(info.index) as live:
                live.advance(hidden)
        with model.tail() as tail:
            return [
                _loss(tail.logits(hidden[number]), window) for number, window in enumerate(windows)
            ]


def _loss(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """logits: (tokens, vocab) float32."""
    import torch

    targets = tokens.to(logits.device)[1:]
    return float(torch.nn.functional.cross_entropy(logits[:-1], targets))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How many tokens an input saw, how wide it is, and whether its whole Gram matrix was kept."""

    linears: tuple[str, ...]
    tokens: int
    features: int
    gram: bool


def check_tokens(inputs: Sequence[Seen], least: int | None = None) -> tuple[str, ...]:
    """Warnings about inputs that saw too few tokens for their statistics to mean much.

    least: tokens that every linear weight must have seen

    Raises:
        GateFailed: one has seen fewer.
    """
    _check_gate(inputs, least)
    found = []
    thin = [each for each in inputs if each.gram and each.tokens < ENOUGH_TOKENS * each.features]
    if thin:
        worst = min(thin, key=lambda each: (each.tokens / each.features, each.linears))
        found.append(
            f"{len(thin)} of {len(inputs)} Gram matrices rest on fewer than {ENOUGH_TOKENS} tokens "
            f"per column; that of {worst.linears[0]!r} on {worst.tokens} tokens for "
            f"{worst.features} columns; more windows (--windows) give better statistics"
        )
    unseen = [name for each in inputs if not each.tokens for name in each.linears]
    if unseen:
        found.append(
            f"no token came to {len(unseen)} linear weights, the first {unseen[0]!r}: they will be "
            "rounded without statistics; give more text, or text of more kinds"
        )
    return tuple(found)


def _check_gate(inputs: Sequence[Seen], least: int | None) -> None:
    few = [each for each in inputs if least is not None and each.tokens < least]
    if few:
        worst = min(few, key=lambda each: (each.tokens, each.linears))
        count = sum(len(each.linears) for each in few)
        raise GateFailed(
            f"linear weight {worst.linears[0]!r} saw {worst.tokens} tokens, but "
            f"--min-tokens-per-expert asks for {least} ({count} such weights); give more windows, "
            "or text of more kinds"
        )
