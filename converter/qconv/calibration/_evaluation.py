"""Held-out windows that share no document and no run of tokens with those of a calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.calibration._build import check_length, choose, read_pool
from qconv.calibration._duplicates import all_runs, runs
from qconv.calibration._read import read_builtin
from qconv.calibration._settings import BUILTIN, SELF
from qconv.calibration._tokenizer import ModelTokenizer
from qconv.errors import UsageError

if TYPE_CHECKING:
    from qconv.calibration._document import Document
    from qconv.calibration._settings import Calibration
    from qconv.calibration._windows import Windows
    from qconv.checkpoint import Checkpoint


def evaluation_windows(
    evaluation: Calibration, checkpoint: Checkpoint, calibrated_on: Windows | None = None
) -> Windows:
    """Windows to measure on; ``builtin`` stands for a text that is never calibrated on.

    A document is dropped, and counted as overlapping, when a calibration window holds tokens of
    it, or when it says anything that shares a run of 13 tokens with a calibration window (runs of
    at most three distinct tokens, rulers and blank space, do not count). So what is measured on
    these windows is not learnt by heart from ``calibrated_on``.

    evaluation: what text, how many windows of what length
    calibrated_on: the windows to stay clear of

    Raises:
        UsageError: text sampled from the model is no held-out text; or too little text is left.
        UnreadableInput, Unsupported: as :func:`build_windows`.
    """
    sources = evaluation.sources
    if any(source.name == SELF or source.name.endswith(".safetensors") for source in sources):
        raise UsageError(
            "held-out text must be text: 'self' and calibration files are what a model is "
            "calibrated on; give builtin or files"
        )
    check_length(evaluation, checkpoint.model)
    tokenizer = ModelTokenizer(checkpoint.model)
    known = _Known(calibrated_on, tokenizer)
    pools = [
        read_pool(
            source,
            evaluation,
            tokenizer,
            len(sources),
            records=read_builtin("evaluate") if source.name == BUILTIN else None,
            wanted=known.is_new,
        )
        for source in sources
    ]
    return choose(pools, evaluation, checkpoint.model)


class _Known:
    """What a calibration has seen.

    Peak memory: some 70 bytes for each of its tokens.
    """

    def __init__(self, windows: Windows | None, tokenizer: ModelTokenizer) -> None:
        self._documents = frozenset() if windows is None else windows.documents
        self._runs = set() if windows is None else all_runs(windows.tokens)
        self._tokenizer = tokenizer

    def is_new(self, document: Document) -> bool:
        """True when nothing of the document was calibrated on."""
        import torch

        if document.digest in self._documents:
            return False
        if not self._runs:
            return True
        said = self._tokenizer.plain(document)
        return all(self._runs.isdisjoint(runs(torch.tensor(each))) for each in said)
