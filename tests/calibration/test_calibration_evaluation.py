"""Facts about held-out windows: nothing in them was calibrated on."""

from __future__ import annotations

import pytest

from calibration.tokenized import prose, write_jsonl, write_texts
from qconv.calibration import Calibration, build_windows, evaluation_windows
from qconv.calibration._document import CleaningCounts, clean_document
from qconv.calibration._duplicates import all_runs
from qconv.calibration._read import read_builtin
from qconv.errors import UsageError


def settings(source, **changes):
    return Calibration(**{"source": str(source), "windows": None, "window_length": 32, **changes})


def digests(split):
    documents = (clean_document(*raw, CleaningCounts()) for raw in read_builtin(split))
    return {document.digest for document in documents if document}


def test_the_builtin_splits_share_no_document():
    assert digests("calibrate").isdisjoint(digests("evaluate"))


def test_builtin_evaluates_on_another_text_than_it_calibrates_on(checkpoint):
    calibrated = build_windows(settings("builtin"), checkpoint)
    held_out = evaluation_windows(settings("builtin"), checkpoint)
    assert calibrated.documents.isdisjoint(held_out.documents)
    assert len(held_out) > 4


def test_calibrated_documents_are_dropped_and_counted(checkpoint, tmp_path):
    write_texts(tmp_path / "all.jsonl", 6)
    write_texts(tmp_path / "half.jsonl", 3)
    calibrated = build_windows(settings(tmp_path / "half.jsonl"), checkpoint)
    held_out = evaluation_windows(settings(tmp_path / "all.jsonl"), checkpoint, calibrated)
    assert held_out.report.sources[0].overlapping == 3
    assert held_out.documents.isdisjoint(calibrated.documents)
    assert all_runs(held_out.tokens).isdisjoint(all_runs(calibrated.tokens))


def test_a_document_that_quotes_calibrated_text_is_dropped(checkpoint, tmp_path):
    known = prose(1)
    quoting = prose(2) + " " + " ".join(known.split()[50:70]) + " " + prose(3)
    write_jsonl(tmp_path / "a.jsonl", {"text": known})
    write_jsonl(tmp_path / "b.jsonl", {"text": quoting}, {"text": prose(4)})
    calibrated = build_windows(settings(tmp_path / "a.jsonl"), checkpoint)
    held_out = evaluation_windows(settings(tmp_path / "b.jsonl"), checkpoint, calibrated)
    assert held_out.report.sources[0].overlapping == 1
    assert len(held_out.documents) == 1


def test_a_chat_template_is_no_overlap_but_what_is_said_is(checkpoint, tmp_path):
    def said(seed):
        return {"messages": [{"role": "user", "content": prose(seed, 60)}]}

    write_jsonl(tmp_path / "a.jsonl", said(1))
    write_jsonl(tmp_path / "b.jsonl", {"text": prose(1, 60)}, said(2), {"text": prose(3)})
    calibrated = build_windows(settings(tmp_path / "a.jsonl"), checkpoint)
    held_out = evaluation_windows(settings(tmp_path / "b.jsonl"), checkpoint, calibrated)
    assert held_out.report.sources[0].overlapping == 1
    assert len(held_out.documents) == 2


def test_when_nothing_is_left_the_message_says_why(checkpoint, tmp_path):
    write_texts(tmp_path / "a.jsonl", 2)
    calibrated = build_windows(settings(tmp_path / "a.jsonl"), checkpoint)
    with pytest.raises(UsageError, match="has 0 tokens after 2 documents that overlap were drop"):
        evaluation_windows(settings(tmp_path / "a.jsonl"), checkpoint, calibrated)


@pytest.mark.parametrize("source", ["self", "c.safetensors"])
def test_what_is_no_text_is_no_held_out_text(checkpoint, source):
    with pytest.raises(UsageError, match="held-out text must be text"):
        evaluation_windows(settings(source), checkpoint)


def test_held_out_text_is_not_chosen_by_the_model(checkpoint):
    with pytest.raises(UsageError, match="perplexity' would choose what the model finds hard"):
        evaluation_windows(settings("builtin", sampling="perplexity"), checkpoint)
