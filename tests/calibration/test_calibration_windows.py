"""Facts about windows: how they are cut and chosen, and that equal settings give equal ones."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from calibration.tokenized import (
    CONTEXT,
    VOCABULARY,
    save_model,
    tokenizer,
    write_jsonl,
    write_texts,
)
from qconv.calibration import Calibration, build_windows
from qconv.calibration._sampling import (
    Candidate,
    Encoded,
    balanced,
    hardest,
    most_diverse,
    one_each,
    pack,
    quotas,
)
from qconv.checkpoint import open_checkpoint
from qconv.errors import BrokenPlugin, UnreadableInput, Unsupported, UsageError

BEGIN = 1


@pytest.fixture
def texts(tmp_path):
    return str(write_texts(tmp_path / "texts.jsonl", 12))


def settings(source, **changes):
    return Calibration(**{"source": source, "windows": 8, "window_length": 32, **changes})


# --- the same again -------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["random", "diverse", "length", "perplexity"])
def test_equal_settings_give_equal_windows_and_another_seed_others(checkpoint, texts, sampling):
    made = [
        build_windows(settings(texts, sampling=sampling, seed=seed), checkpoint)
        for seed in (0, 0, 1)
    ]
    assert made[0].digest == made[1].digest != made[2].digest
    assert made[0].report == made[1].report
    assert made[0].origins == made[1].origins


def test_the_order_of_lines_and_the_name_of_the_file_do_not_count(checkpoint, tmp_path, texts):
    lines = (tmp_path / "texts.jsonl").read_text().splitlines()
    (tmp_path / "others.jsonl").write_text("\n".join(reversed(lines)))
    one = build_windows(settings(texts), checkpoint)
    two = build_windows(settings(str(tmp_path / "others.jsonl")), checkpoint)
    assert one.digest == two.digest


def test_building_windows_leaves_random_generators_alone(checkpoint, texts):
    before = torch.get_rng_state()
    build_windows(settings(texts, sampling="perplexity"), checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


# --- what a window is -----------------------------------------------------------------------------


def test_packed_windows_are_full_and_documents_begin_as_the_tokenizer_has_it(checkpoint, texts):
    windows = build_windows(settings(texts, windows=None), checkpoint)
    assert {len(window) for window in windows.tokens} == {32}
    assert all(window.dtype == torch.int64 for window in windows.tokens)
    begins = int((torch.cat(windows.tokens) == BEGIN).sum())
    assert begins in {11, 12}  # twelve documents, of which one may have begun in the rest


def test_without_packing_a_window_is_the_beginning_of_a_document(checkpoint, tmp_path):
    records = [{"text": " ".join(f"w{n}" for n in range(count))} for count in (2, 5, 200)]
    source = str(write_jsonl(tmp_path / "a.jsonl", *records))
    windows = build_windows(settings(source, packing=False), checkpoint)
    assert len(windows) == 3
    assert max(len(window) for window in windows.tokens) == 32
    assert all(int(window[0]) == BEGIN for window in windows.tokens)
    assert {len(origin.documents) for origin in windows.origins} == {1}


def test_a_conversation_is_rendered_once_and_begins_once(checkpoint, tmp_path):
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi " * 30}]
    source = str(write_jsonl(tmp_path / "a.jsonl", {"messages": messages}))
    made = tokenizer()
    for template, text in ((True, "[user]hello[assistant]hi hi"), (False, "hello\n\nhi hi")):
        windows = build_windows(settings(source, packing=False, chat_template=template), checkpoint)
        tokens = windows.tokens[0].tolist()
        assert tokens[0] == BEGIN
        assert BEGIN not in tokens[1:]
        assert made.decode(tokens[1:]).startswith(text)


def test_a_conversation_the_template_refuses_goes_in_as_text(checkpoint, tmp_path):
    messages = [{"role": "system", "content": "rule"}, {"role": "user", "content": "hi " * 30}]
    source = str(write_jsonl(tmp_path / "a.jsonl", {"messages": messages}))
    windows = build_windows(settings(source, packing=False), checkpoint)
    assert windows.report.sources[0].templates_failed == 1
    assert "the chat template refused 1 conversations" in windows.report.warnings[-1]
    assert tokenizer().decode(windows.tokens[0][1:]).startswith("rule")


def test_documents_without_marks_of_their_own_are_parted_by_an_empty_line(tmp_path):
    folder = save_model(tmp_path / "model")
    tokenizer(begin=False).save_pretrained(folder)
    source = str(write_texts(tmp_path / "a.jsonl", 2, words=30))
    with open_checkpoint(folder) as checkpoint:
        windows = build_windows(settings(source, windows=None, window_length=16), checkpoint)
    documents = {digest for origin in windows.origins for digest in origin.documents}
    assert len(documents) == 2
    both = next(i for i, origin in enumerate(windows.origins) if len(origin.documents) == 2)
    assert "\n\n" in tokenizer().decode(windows.tokens[both])


def test_a_part_knows_its_place(checkpoint, texts):
    windows = build_windows(settings(texts), checkpoint)
    first, second = windows.part(0, 3), windows.part(3, 8)
    assert (first.first_token, second.first_token) == (0, 96)
    assert second.report.windows == 5
    assert second.origins == windows.origins[3:]
    assert torch.equal(torch.cat([*first.tokens, *second.tokens]), torch.cat(windows.tokens))


def test_the_digest_is_of_the_tokens_alone(checkpoint, texts):
    windows = build_windows(settings(texts), checkpoint)
    assert dataclasses.replace(windows, origins=(), first_token=9).digest == windows.digest
    assert windows.part(0, 7).digest != windows.digest
    joined = dataclasses.replace(windows, tokens=(torch.cat(windows.tokens),))
    assert joined.digest != windows.digest


# --- what the report says -------------------------------------------------------------------------


def test_the_report_counts(checkpoint, tmp_path):
    write_texts(tmp_path / "a.jsonl", 3)
    write_jsonl(
        tmp_path / "b.jsonl", {"text": "short \x00 text"}, {"text": "SHORT text!"}, {"x": 1}
    )
    made = build_windows(settings(str(tmp_path), windows=None), checkpoint)
    (source,) = made.report.sources
    assert source.source == tmp_path.name
    assert (source.counts.records, source.counts.documents) == (6, 4)
    assert (source.counts.duplicates, source.counts.without_text) == (1, 1)
    assert source.counts.control_characters == 1
    assert source.windows == source.candidates == made.report.windows == len(made)
    assert made.report.tokens == 32 * len(made)
    assert made.report.vocabulary == VOCABULARY
    assert made.report.distinct_tokens == len(torch.cat(made.tokens).unique())
    assert made.report.vocabulary_share == made.report.distinct_tokens / VOCABULARY


def test_fewer_windows_than_asked_for_are_told(checkpoint, tmp_path):
    source = str(write_texts(tmp_path / "a.jsonl", 1, words=20))
    report = build_windows(settings(source), checkpoint).report
    assert 0 < report.windows < 8
    assert (
        f"fills {report.windows} windows of the 8 asked for; give more text" in report.warnings[0]
    )


def test_mixed_sources_give_their_shares(checkpoint, tmp_path):
    one = str(write_texts(tmp_path / "a.jsonl", 8))
    two = str(write_texts(tmp_path / "b.jsonl", 8, seed=50))
    report = build_windows(settings((f"{one}=0.25", two)), checkpoint).report
    assert [source.windows for source in report.sources] == [2, 6]
    assert not report.warnings


def test_a_source_that_lacks_text_is_stood_in_for_and_told(checkpoint, tmp_path):
    one = str(write_texts(tmp_path / "a.jsonl", 1, words=12))
    two = str(write_texts(tmp_path / "b.jsonl", 8, seed=50))
    report = build_windows(settings((one, two)), checkpoint).report
    assert report.windows == 8
    assert report.sources[0].windows < 4
    assert "source a.jsonl gave" in report.warnings[0]
    assert "less than its share of 4; the other sources stand in" in report.warnings[0]


def test_the_builtin_text_fills_windows(checkpoint):
    windows = build_windows(Calibration(windows=16, window_length=CONTEXT), checkpoint)
    assert len(windows) == 16
    assert windows.report.sources[0].source == "builtin"


# --- what is refused ------------------------------------------------------------------------------


def test_windows_beyond_the_context_are_refused(checkpoint):
    with pytest.raises(UsageError, match="windows of 512 tokens, but the context of llama is 64"):
        build_windows(Calibration(), checkpoint)


@pytest.mark.parametrize("text", ["", "tiny"])
def test_less_text_than_a_window_is_refused(checkpoint, tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UsageError, match="less than one window of 32; give more text or a shorter"):
        build_windows(settings(str(tmp_path / "a.txt")), checkpoint)


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path):
    from model.tiny import save

    save("llama", tmp_path)
    with (
        open_checkpoint(tmp_path) as checkpoint,
        pytest.raises(Unsupported, match="no tokenizer.json, tokenizer.model, vocab.json beside"),
    ):
        build_windows(settings("builtin"), checkpoint)


def test_the_tokenizer_of_another_model_is_refused(tmp_path):
    folder = save_model(tmp_path / "model", vocab_size=100)
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(Unsupported, match="gives token .*, but the model's vocabulary has 100 tok"),
    ):
        build_windows(settings("builtin"), checkpoint)


def test_a_damaged_tokenizer_is_refused(tmp_path):
    folder = save_model(tmp_path / "model")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(UnreadableInput, match="its tokenizer files cannot be loaded"),
    ):
        build_windows(settings("builtin"), checkpoint)


def test_code_beside_a_tokenizer_is_not_run(tmp_path):
    folder = save_model(tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", None]}
    config["tokenizer_class"] = "EvilTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with open_checkpoint(folder) as checkpoint:
        try:
            build_windows(settings("builtin"), checkpoint)
        except UnreadableInput as error:
            assert "tokenizer files cannot be loaded" in str(error)  # noqa: PT017
    assert not (tmp_path / "ran").exists()


def test_without_transformers_the_extra_is_named(checkpoint, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BrokenPlugin, match=r"pip install 'qconv\[calibration\]'"):
        build_windows(settings("builtin"), checkpoint)


def test_encoders_have_no_perplexity(tmp_path, texts):
    folder = save_model(tmp_path / "bert", "bert")
    with open_checkpoint(folder) as checkpoint:
        assert len(build_windows(settings(texts), checkpoint)) == 8
        with pytest.raises(Unsupported, match="sampling 'perplexity' needs a model that predicts"):
            build_windows(settings(texts, sampling="perplexity"), checkpoint)


# --- the strategies -------------------------------------------------------------------------------


def candidate(*tokens):
    return Candidate(tokens, ())


def test_packing_loses_only_the_end():
    documents = [Encoded([1, 2, 3], "a"), Encoded([4], "b"), Encoded([5, 6, 7, 8], "c")]
    cut = list(pack(documents, 3, [0]))
    assert [each.tokens for each in cut] == [(1, 2, 3), (0, 4, 0), (5, 6, 7)]
    assert [each.documents for each in cut] == [("a",), ("a", "b"), ("c",)]


def test_one_document_each_leaves_out_what_predicts_nothing():
    cut = list(one_each([Encoded([1], "a"), Encoded([1, 2, 3], "b")], 2))
    assert [each.tokens for each in cut] == [(1, 2)]


def test_diverse_takes_what_covers_most_then_what_is_new():
    candidates = [candidate(1, 2, 3), candidate(1, 2, 3), candidate(1, 2), candidate(1, 9)]
    assert most_diverse(candidates, 2) == [3, 0] or most_diverse(candidates, 2) == [0, 3]
    assert sorted(most_diverse(candidates, 9)) == [0, 1, 2, 3]


def test_diverse_covers_more_than_random(checkpoint, tmp_path):
    source = str(write_texts(tmp_path / "a.jsonl", 40))
    random, diverse = (
        build_windows(settings(source, sampling=each), checkpoint).report.distinct_tokens
        for each in ("random", "diverse")
    )
    assert diverse > random


def test_lengths_take_turns():
    documents = [Encoded([0] * length, str(length)) for length in (2, 3, 2, 9, 8, 100)]
    assert [len(each.tokens) for each in balanced(documents)] == [2, 9, 100, 3, 8, 2]


def test_hardest_leaves_out_the_twentieth_that_is_noise():
    losses = [float(number) for number in range(40)]
    assert hardest(losses, 3) == [37, 36, 35]
    assert hardest(losses, 40) == list(range(39, -1, -1))


def test_perplexity_takes_harder_windows_than_random(checkpoint, texts):
    from qconv.calibration._running import losses
    from qconv.model import open_model

    model = open_model(checkpoint, device="cpu")
    random, hard = (
        losses(model, build_windows(settings(texts, sampling=each), checkpoint).tokens)
        for each in ("random", "perplexity")
    )
    assert sum(hard) > sum(random)


@pytest.mark.parametrize(
    ("shares", "available", "count", "taken"),
    [
        ([1.0], [5], 3, [3]),
        ([1.0], [5], 9, [5]),
        ([0.5, 0.5], [9, 9], 5, [3, 2]),
        ([0.3, 0.7], [9, 9], 10, [3, 7]),
        ([0.5, 0.5], [1, 9], 8, [1, 7]),
        ([0.5, 0.25, 0.25], [0, 9, 1], 8, [0, 7, 1]),
        ([0.01, 0.99], [5, 5], 10, [5, 5]),
    ],
)
def test_quotas(shares, available, count, taken):
    assert quotas(shares, available, count) == taken
