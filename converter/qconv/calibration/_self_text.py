"""Text sampled from the model itself, so that it can be calibrated without any data.

What a model says is text it knows, whatever its languages and formats: LLM-QAT
(https://arxiv.org/abs/2305.17888, section 3.1) trains on such text with a random first token, so
that the samples differ, then a few likeliest tokens, which find a subject, and samples the rest
from the model's own distribution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qconv.calibration._running import Progress, silent
from qconv.errors import Unsupported

if TYPE_CHECKING:
    import torch

    from qconv.model import BlockModel

#: The model's own distribution, without the tail in which one bad token derails all that follow.
TEMPERATURE, TOP_P = 1.0, 0.95
#: Likeliest tokens after the random one.
_SETTLING = 4
#: Windows sampled together at most. It never depends on the memory there is: sums in a batch of
#: another size round differently.
_BATCH = 16


def sample_from(
    model: BlockModel,
    count: int,
    length: int,
    *,
    begin: int | None,
    first_tokens: Sequence[int],
    seed: int,
    progress: Progress = silent,
) -> list[torch.Tensor]:
    """:func:`sample_windows`, from the whole of ``model``.

    Raises:
        Unsupported: the model is an encoder, which predicts no next token.
        NotEnoughResources: the whole model does not fit in memory.
    """
    if not model.is_decoder or model.head is None:
        raise Unsupported(
            "calibration source 'self' needs a model that predicts the next token, and this one "
            "is an encoder; use --calibration builtin or a file"
        )
    return sample_windows(
        model.whole(),
        count,
        length,
        begin=begin,
        first_tokens=first_tokens,
        seed=seed,
        device=model.device,
        progress=progress,
    )


def sample_windows(
    module: Any,  # noqa: ANN401 - any causal model of transformers
    count: int,
    length: int,
    *,
    begin: int | None,
    first_tokens: Sequence[int],
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> list[torch.Tensor]:
    """Sample windows from the model: ``count`` of (length,) int64, on the CPU.

    Equal seeds give equal windows on one machine; the generators of torch are left alone.
    Peak memory: the keys and values of 16 windows.

    module: called with ``input_ids``, ``past_key_values`` and ``use_cache``
    begin: token that begins every window; None for none
    first_tokens: one of them, drawn at random, comes next
    """
    import torch

    digest = hashlib.sha256(f"{seed}:self".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    choice = torch.tensor(sorted(first_tokens), dtype=torch.int64)
    windows: list[torch.Tensor] = []
    while len(windows) < count:
        batch = min(_BATCH, count - len(windows))
        drawn = torch.randint(len(choice), (batch, 1), generator=generator)
        start = choice[drawn]
        if begin is not None:
            start = torch.cat([torch.full((batch, 1), begin), start], dim=1)
        start = start[:, :length]
        done = len(windows)

        def told(tokens: int, done: int = done) -> None:
            progress("sampling text from the model", done * length + tokens, count * length)

        windows += _continued(
            module, start, length, generator=generator, device=device, told=told
        ).unbind()
    return [window.clone() for window in windows]


def _continued(
    module: Any,  # noqa: ANN401
    start: torch.Tensor,
    length: int,
    *,
    generator: torch.Generator,
    device: torch.device | str,
    told: Callable[[int], None],
) -> torch.Tensor:
    """(batch, length) int64: ``start`` and what the model says next."""
    import torch

    tokens, step, cache = start, start, None
    with torch.no_grad():
        while tokens.shape[1] < length:
            output = module(input_ids=step.to(device), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits = output.logits[:, -1].float().cpu()
            settled = tokens.shape[1] >= start.shape[1] + _SETTLING
            step = (draw(logits, generator) if settled else logits.argmax(-1))[:, None]
            tokens = torch.cat([tokens, step], dim=1)
            told(tokens.numel())
    return tokens


def draw(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One token for each row, from the most likely ones that make up TOP_P together.

    logits: (batch, vocab) float32 on the CPU
    Returns: (batch,) int64
    """
    import torch

    likely, order = (logits.double() / TEMPERATURE).softmax(-1).sort(descending=True, stable=True)
    before = likely.cumsum(-1) - likely
    kept = likely.masked_fill(before >= TOP_P, 0.0).cumsum(-1)
    at = torch.rand(len(kept), 1, generator=generator, dtype=torch.float64) * kept[:, -1:]
    place = torch.searchsorted(kept, at, right=True).clamp_max(logits.shape[-1] - 1)
    return order.gather(-1, place)[:, 0]
