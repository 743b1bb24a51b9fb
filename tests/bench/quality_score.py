"""What a quantized model does to the float model's predictions, position by position.

KL(float || quantized) over the whole vocabulary, in nats, at every position of every window; its
standard error is over windows, since positions of one text go together. Perplexity is over the
positions that have a next token.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from quality_artifacts import BLOCK_LINEAR, Artifact

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Score:
    """How far an artifact is from the float model.

    kl, kl_se: mean over positions in nats, and its standard error over windows
    kl_median, kl_p99: over positions
    top1: share of positions whose likeliest token is the float model's
    perplexity_ratio: to the float model's
    window_kl: mean of each window, so that two artifacts can be compared pair by pair
    """

    kl: float
    kl_se: float
    kl_median: float
    kl_p99: float
    top1: float
    perplexity: float
    perplexity_ratio: float
    window_kl: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Judge:
    """The float model, run once on all windows; then its weights give way to others'.

    Peak memory: the model and an artifact in float32. The float model's log-probabilities lie in
    a temporary file: windows x length x vocabulary float32.

    windows: (windows, length) int64
    skip: leading positions of each window that are not scored
    """

    def __init__(self, reference: Path, windows: torch.Tensor, *, skip: int = 0) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.windows, self.skip = windows, skip
        self.config = json.loads((reference / "config.json").read_text(encoding="utf-8"))
        loaded = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
        self.model: PreTrainedModel = loaded.eval()
        head = self.model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())  # untied: artifacts may be
        self._outside = {
            name: tensor.clone()
            for name, tensor in self.model.state_dict().items()
            if name in ("model.embed_tokens.weight", "lm_head.weight")
        }
        self._file = tempfile.NamedTemporaryFile(prefix="qconv-quality-")  # noqa: SIM115
        self._float = self._run_float()
        self.perplexity = math.exp(float(self._losses(self._float).mean()))

    def _run_float(self) -> torch.Tensor:
        """Log-probabilities of the float model: (windows, length, vocabulary), on disk."""
        count, length = self.windows.shape
        vocabulary = self.config["vocab_size"]
        kept = torch.from_file(
            self._file.name, shared=True, size=count * length * vocabulary, dtype=torch.float32
        ).view(count, length, vocabulary)
        for number, log_p in enumerate(self._run()):
            kept[number] = log_p
        return kept

    @torch.no_grad()
    def _run(self) -> Iterator[torch.Tensor]:
        """Log-probabilities of the model as it is, window by window: (length, vocabulary)."""
        for window in self.windows:
            yield torch.log_softmax(self.model(window[None], use_cache=False).logits[0], -1)

    def _losses(self, all_log_p: torch.Tensor) -> torch.Tensor:
        """Negative log-probability of each next token, over all windows."""
        pairs = zip(all_log_p, self.windows, strict=True)
        return torch.cat([self._loss(log_p, window) for log_p, window in pairs])

    def _loss(self, log_p: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        return -log_p[self.skip : -1].gather(1, window[self.skip + 1 :, None])[:, 0].double()

    def score(
        self, artifact: Artifact, *, activations: bool = False, linears_only: bool = False
    ) -> Score:
        """Put the artifact's weights in, run it, compare.

        activations: round the linears' inputs to int8, token by token, as the runtime does
        linears_only: the float model's embedding and head in place of the artifact's
        """
        self._load(artifact, linears_only=linears_only)
        divergences, agreed, losses = [], [], []
        with rounded_inputs(self.model) if activations else _nothing():
            for number, log_q in enumerate(self._run()):
                log_p = self._float[number][self.skip :]
                scored = log_q[self.skip :]
                divergences.append((log_p.exp() * (log_p - scored)).sum(-1).double())
                agreed.append((log_p.argmax(-1) == scored.argmax(-1)).double())
                losses.append(self._loss(log_q, self.windows[number]))
        return self._summed_up(divergences, agreed, torch.cat(losses))

    def _summed_up(
        self, divergences: list[torch.Tensor], agreed: list[torch.Tensor], losses: torch.Tensor
    ) -> Score:
        every = torch.cat(divergences)
        means = torch.stack([each.mean() for each in divergences])
        perplexity = math.exp(float(losses.mean()))
        error = float(means.std() / len(means) ** 0.5) if len(means) > 1 else math.nan
        return Score(
            kl=float(every.mean()),
            kl_se=error,
            kl_median=float(every.median()),
            kl_p99=float(every.quantile(0.99)),
            top1=float(torch.cat(agreed).mean()),
            perplexity=perplexity,
            perplexity_ratio=perplexity / self.perplexity,
            window_kl=tuple(means.tolist()),
        )

    def _load(self, artifact: Artifact, *, linears_only: bool) -> None:
        """Every tensor of the model from the artifact: one that is lacking is an error."""
        state = dict(artifact.state)
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
        if linears_only:
            state |= self._outside
        self.model.load_state_dict(state, strict=True)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def round_tokens(values: torch.Tensor) -> torch.Tensor:
    """Symmetric int8, a scale for each token, ties to even, as vLLM's int8 kernels: float32."""
    scale = values.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.round(values / scale).clamp(-128, 127) * scale


@contextmanager
def rounded_inputs(model: torch.nn.Module) -> Iterator[None]:
    """Every linear inside a block sees its input rounded."""
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: (round_tokens(inputs[0]), *inputs[1:]))
        for name, module in model.named_modules()
        if BLOCK_LINEAR.search(f"{name}.weight")
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Of two means over the same windows, and its standard error (jackknife over windows)."""
    count, mine, other = len(ours), sum(ours), sum(theirs)
    whole = mine / other
    if count < 2:
        return whole, math.nan
    left_out = [(mine - a) / (other - b) for a, b in zip(ours, theirs, strict=True)]
    mean = sum(left_out) / count
    spread = sum((each - mean) ** 2 for each in left_out)
    return whole, math.sqrt((count - 1) / count * spread)
