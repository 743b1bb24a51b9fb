"""From settings and a checkpoint to windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qconv.calibration._corpus import Corpus, CorpusCounts, collect
from qconv.calibration._file import FILE_SUFFIX, load_calibration
from qconv.calibration._read import Raw, read_source
from qconv.calibration._running import Progress, losses, silent
from qconv.calibration._sampling import (
    Candidate,
    Encoded,
    balanced,
    hardest,
    most_diverse,
    one_each,
    pack,
    quotas,
    shuffled,
)
from qconv.calibration._self_text import sample_from
from qconv.calibration._settings import SELF
from qconv.calibration._tokenizer import ModelTokenizer, context_length, vocabulary_size
from qconv.calibration._windows import Origin, SourceReport, Windows, measured
from qconv.errors import UsageError

if TYPE_CHECKING:
    import torch

    from qconv.calibration._document import Document
    from qconv.calibration._settings import Calibration, Source
    from qconv.checkpoint import Checkpoint
    from qconv.model import BlockModel
    from qconv.plugin import ModelInfo

#: Windows there are to choose from, for each one taken.
_CANDIDATES = {"random": 4, "diverse": 8, "length": 4, "perplexity": 4}
#: Characters kept for each token wanted: a token of the sparsest common text, indented code, has
#: fewer, and near duplicates and short tails go.
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Candidates of one source, and the report so far."""

    candidates: tuple[Candidate, ...]
    tokens: int
    report: SourceReport


def build_windows(
    calibration: Calibration,
    checkpoint: Checkpoint,
    *,
    model: BlockModel | None = None,
    progress: Progress = silent,
) -> Windows:
    """Read, clean, tokenize, cut and choose: the windows of ``calibration``.

    Equal settings, text and tokenizer give equal windows, on any machine; where the model itself
    has a say (source ``self``, sampling ``perplexity``), on machines that compute alike.
    Peak memory: the text kept (16 characters for each token of the candidates) and its tokens;
    for ``self`` the whole model, for ``perplexity`` one block and the candidates' hidden states.

    model: for ``self`` and ``perplexity``; opened when needed if not given

    Raises:
        UsageError: windows longer than the model's context, or too little text.
        UnreadableInput: a source is missing, damaged or of unknown kind.
        Unsupported: the checkpoint has no tokenizer, or one of another model; an encoder was to
            sample text or tell its perplexity.
        NotEnoughResources: the model is to sample text, but does not fit in memory.
        BrokenPlugin: transformers is not installed.
    """
    sources = calibration.sources
    if any(source.name.endswith(FILE_SUFFIX) for source in sources):
        return _stored(sources, checkpoint.model)
    check_length(calibration, checkpoint.model)
    tokenizer = ModelTokenizer(checkpoint.model)
    runs = _Runs(checkpoint, model, progress)
    pools = [
        runs.sampled(source, calibration, tokenizer)
        if source.name == SELF
        else read_pool(source, calibration, tokenizer, len(sources))
        for source in sources
    ]
    return choose(pools, calibration, checkpoint.model, losses_of=runs.losses)


def _stored(sources: Sequence[Source], model: ModelInfo) -> Windows:
    """The windows of a calibration file, as they are."""
    if len(sources) > 1:
        raise UsageError(
            f"calibration file '{sources[0].name}' cannot be mixed with other sources: its windows "
            "are cut already; name it alone, or add files up with qconv calibrate --add"
        )
    windows = load_calibration(sources[0].name, model).windows
    if not windows.tokens:
        raise UsageError(f"{sources[0].name}: holds no windows; calibrate again")
    return windows


class _Runs:
    """What the model itself has to say: opened when it is first asked."""

    def __init__(
        self, checkpoint: Checkpoint, model: BlockModel | None, progress: Progress
    ) -> None:
        self._checkpoint, self._model, self._progress = checkpoint, model, progress

    def losses(self, windows: Sequence[torch.Tensor]) -> list[float]:
        """How hard the windows are."""
        return losses(self._opened(), windows, self._progress)

    def sampled(self, source: Source, calibration: Calibration, tokenizer: ModelTokenizer) -> Pool:
        """As many windows as the source is to give, sampled from the model."""
        if calibration.windows is None:
            raise UsageError(
                "calibration source 'self' has no end; give a number of windows (--windows)"
            )
        count = math.ceil(source.share * calibration.windows)
        tokens = sample_from(
            self._opened(),
            count,
            calibration.window_length,
            begin=tokenizer.begin,
            first_tokens=tokenizer.words,
            seed=calibration.seed,
            progress=self._progress,
        )
        candidates = tuple(Candidate(tuple(window.tolist()), ()) for window in tokens)
        report = SourceReport(source=source.label, share=source.share, candidates=count, windows=0)
        length = calibration.window_length
        return Pool(candidates=candidates, tokens=count * length, report=report)

    def _opened(self) -> BlockModel:
        from qconv.model import open_model

        if self._model is None:
            self._model = open_model(self._checkpoint)
        return self._model


def check_length(calibration: Calibration, model: ModelInfo) -> None:
    """Refuse windows the model cannot run.

    Raises:
        UsageError: they are longer than its context.
    """
    context = context_length(model)
    if context is not None and calibration.window_length > context:
        raise UsageError(
            f"windows of {calibration.window_length} tokens, but the context of {model.name} is "
            f"{context}; use --window-length {context} or less"
        )


def read_pool(
    source: Source,
    calibration: Calibration,
    tokenizer: ModelTokenizer,
    sources: int,
    *,
    records: Iterable[Raw] | None = None,
    wanted: Callable[[Document], bool] = lambda _document: True,
) -> Pool:
    """The candidates of one source.

    sources: how many there are; any may have to stand in for others
    records: what to read instead of the source itself
    wanted: documents it refuses are dropped, and counted as overlapping
    """
    tokens = None
    if calibration.windows is not None:
        share = source.share if sources == 1 else min(1.0, 2 * source.share)
        windows = max(1, round(calibration.windows * share)) * _CANDIDATES[calibration.sampling]
        tokens = windows * calibration.window_length
    corpus = collect(
        read_source(source.name) if records is None else records,
        seed=calibration.seed,
        most_characters=None if tokens is None else tokens * _CHARACTERS_PER_TOKEN,
    )
    kept = [document for document in corpus.documents if wanted(document)]
    failed = tokenizer.templates_failed
    documents = _encode(kept, calibration, tokenizer, tokens)
    candidates = tuple(_cut(documents, calibration, tokenizer))
    return Pool(
        candidates=candidates,
        tokens=sum(len(document.tokens) for document in documents),
        report=SourceReport(
            source=source.label,
            share=source.share,
            counts=_counts(corpus, kept, documents),
            templates_failed=tokenizer.templates_failed - failed,
            overlapping=len(corpus.documents) - len(kept),
            candidates=len(candidates),
            windows=0,
        ),
    )


def _counts(corpus: Corpus, kept: Sequence[Document], used: Sequence[Encoded]) -> CorpusCounts:
    unused = corpus.counts.unused + len(kept) - len(used)
    return replace(corpus.counts, unused=unused, documents=len(used))


def _encode(
    documents: Iterable[Document],
    calibration: Calibration,
    tokenizer: ModelTokenizer,
    most: int | None,
) -> list[Encoded]:
    """The documents in their order, until there are ``most`` tokens."""
    encoded: list[Encoded] = []
    total = 0
    for document in documents:
        tokens = tokenizer.encode(document, chat_template=calibration.chat_template)
        encoded.append(Encoded(tokens, document.digest))
        total += len(tokens) if calibration.packing else min(len(tokens), calibration.window_length)
        if most is not None and total >= most:
            break
    return encoded


def _cut(
    documents: Sequence[Encoded], calibration: Calibration, tokenizer: ModelTokenizer
) -> Iterable[Candidate]:
    if calibration.sampling == "length":
        documents = balanced(documents)
    if calibration.packing:
        return pack(documents, calibration.window_length, tokenizer.separator())
    return one_each(documents, calibration.window_length)


def choose(
    pools: Sequence[Pool],
    calibration: Calibration,
    model: ModelInfo,
    *,
    losses_of: Callable[[Sequence[torch.Tensor]], list[float]] | None = None,
) -> Windows:
    """The windows taken from all pools, in an order that the seed decides.

    losses_of: tells how hard windows are, for sampling ``perplexity``

    Raises:
        UsageError: all text together does not fill a window.
    """
    _check_enough(pools, calibration)
    available = [len(pool.candidates) for pool in pools]
    asked = calibration.windows or sum(available)
    counts = quotas([pool.report.share for pool in pools], available, asked)
    taken: list[tuple[Candidate, Origin]] = []
    for pool, count in zip(pools, counts, strict=True):
        for index in _take(pool, count, calibration, losses_of):
            candidate = pool.candidates[index]
            origin = Origin(source=pool.report.source, documents=candidate.documents)
            taken.append((candidate, origin))
    order = shuffled(len(taken), f"{calibration.seed}:order")
    tokens = [_tensor(taken[index][0]) for index in order]
    reports = [
        replace(pool.report, windows=count) for pool, count in zip(pools, counts, strict=True)
    ]
    return Windows(
        tokens=tuple(tokens),
        origins=tuple(taken[index][1] for index in order),
        report=measured(tokens, reports, vocabulary_size(model), _warnings(reports, asked)),
    )


def _take(
    pool: Pool,
    count: int,
    calibration: Calibration,
    losses_of: Callable[[Sequence[torch.Tensor]], list[float]] | None,
) -> list[int]:
    """Indices of ``count`` candidates of one pool."""
    if calibration.sampling == "perplexity" and count:
        if losses_of is None:
            raise UsageError(
                "sampling 'perplexity' would choose what the model finds hard, which is no fair "
                "held-out text; use --sampling random"
            )
        tokens = [_tensor(candidate) for candidate in pool.candidates]
        return hardest(losses_of(tokens), count)
    if calibration.sampling == "diverse":
        return most_diverse(pool.candidates, count)
    if calibration.sampling == "length":
        return list(range(count))
    return shuffled(len(pool.candidates), f"{calibration.seed}:take")[:count]


def _tensor(candidate: Candidate) -> torch.Tensor:
    import torch

    return torch.tensor(candidate.tokens, dtype=torch.int64)


def _check_enough(pools: Sequence[Pool], calibration: Calibration) -> None:
    tokens = sum(pool.tokens for pool in pools)
    if tokens < calibration.window_length or not any(pool.candidates for pool in pools):
        overlapping = sum(pool.report.overlapping for pool in pools)
        dropped = f" after {overlapping} documents that overlap were dropped" if overlapping else ""
        raise UsageError(
            f"the calibration text has {tokens} tokens{dropped}, less than one window of "
            f"{calibration.window_length}; give more text or a shorter --window-length"
        )


def _warnings(reports: Sequence[SourceReport], asked: int) -> tuple[str, ...]:
    found = []
    got = sum(report.windows for report in reports)
    if got < asked:
        found.append(
            f"the calibration text fills {got} windows of the {asked} asked for; give more text "
            "for better statistics"
        )
    for report in reports:
        wanted = report.share * asked
        if len(reports) > 1 and report.windows < int(wanted):
            found.append(
                f"calibration source {report.source} gave {report.windows} windows, less than its "
                f"share of {wanted:.0f}; the other sources stand in for it"
            )
        if report.templates_failed:
            found.append(
                f"calibration source {report.source}: the chat template refused "
                f"{report.templates_failed} conversations, which went in as plain text"
            )
    return tuple(found)
