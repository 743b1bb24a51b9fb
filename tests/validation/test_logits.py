"""Predictions compared: figures of a few windows, beside those computed the plain way."""

from __future__ import annotations

import math

import pytest
import torch

from qconv.validation._logits import LogitsSum


def windows(count: int, length: int = 70, vocabulary: int = 40):
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        tokens = torch.randint(0, vocabulary, (length,), generator=generator)
        logits = torch.randn(length, vocabulary, generator=generator)
        yield tokens, logits, logits + 0.3 * torch.randn(length, vocabulary, generator=generator)


def total(each) -> object:
    added = LogitsSum()
    for window, reference, scored in each:
        added.add(window, reference, scored)
    return added.total("test")


def test_equal_logits_lose_nothing():
    found = total((tokens, logits, logits) for tokens, logits, _ in windows(3))
    assert found.kl.mean == found.kl.max == 0
    assert (found.same_top1, found.top5_overlap, found.rms_probability) == (1, 1, 0)
    assert found.perplexity_ratio == 1
    assert found.ratio_interval == (1, 1)


def test_the_figures_are_those_computed_the_plain_way():
    given = list(windows(4))
    found = total(given)
    kl, ours, theirs, same, overlap, change = [], [], [], [], [], []
    for tokens, reference, scored in given:
        p, q = reference.double().softmax(-1), scored.double().softmax(-1)
        kl.append((p * (p / q).log()).sum(-1))
        at = torch.arange(len(tokens) - 1)
        theirs.append(-p[at, tokens[1:]].log())
        ours.append(-q[at, tokens[1:]].log())
        change.append(q[at, tokens[1:]] - p[at, tokens[1:]])
        same.append(p.argmax(-1) == q.argmax(-1))
        best = zip(p.topk(5).indices.tolist(), q.topk(5).indices.tolist(), strict=True)
        overlap += [len(set(a) & set(b)) / 5 for a, b in best]
    every = torch.cat(kl)
    assert found.tokens == len(every) == 280
    assert found.kl.mean == pytest.approx(float(every.mean()), rel=1e-4)
    assert found.kl.max == pytest.approx(float(every.max()), rel=1e-4)
    assert found.kl.median == pytest.approx(float(every.sort().values[139]), rel=1e-4)
    assert found.kl.p99 == pytest.approx(float(every.sort().values[277]), rel=1e-4)
    assert found.window_kl == pytest.approx([float(each.mean()) for each in kl], rel=1e-4)
    assert found.same_top1 == pytest.approx(float(torch.cat(same).double().mean()))
    assert found.top5_overlap == pytest.approx(sum(overlap) / len(overlap))
    perplexity = math.exp(float(torch.cat(ours).mean()))
    reference = math.exp(float(torch.cat(theirs).mean()))
    assert found.perplexity == pytest.approx(perplexity, rel=1e-5)
    assert found.perplexity_ratio == pytest.approx(perplexity / reference, rel=1e-5)
    assert found.rms_probability == pytest.approx(
        float((torch.cat(change) ** 2).mean().sqrt()), rel=1e-4
    )
    low, high = found.ratio_interval
    assert low < found.perplexity_ratio < high


@pytest.mark.parametrize(
    ("count", "t"), [(2, 12.706205), (3, 4.302653), (4, 3.182446), (5, 2.776445), (32, 2.039513)]
)
def test_the_interval_is_that_of_students_t(count, t):
    """Windows whose loss changed by 0.01, 0.02, ...; t as in any table of it."""
    changes = [0.01 * (1 + number) for number in range(count)]
    mean = sum(changes) / count
    error = (sum((each - mean) ** 2 for each in changes) / (count - 1) / count) ** 0.5
    added = LogitsSum()
    added.kl = [torch.zeros(2, dtype=torch.float64)] * count
    added.losses = [(1 + change, 1.0, 1) for change in changes]
    low, high = added.total("test").ratio_interval
    assert (mean - math.log(low)) / error == pytest.approx(t, rel=0.005)
    assert (math.log(high) - mean) / error == pytest.approx(t, rel=0.005)


def test_one_window_says_nothing_of_the_interval():
    assert total(windows(1)).ratio_interval == (0, math.inf)


def test_more_of_a_vocabulary_is_no_difference_where_it_is_never_likely():
    tokens, reference, scored = next(windows(1))
    padded = torch.cat([scored, torch.full((len(tokens), 3), -1e9)], dim=1)
    assert total([(tokens, reference, padded)]) == total([(tokens, reference, scored)])


def test_a_token_that_the_source_does_not_have_may_not_be_the_likeliest():
    tokens, reference, _ = next(windows(1))
    padded = torch.cat([reference, torch.full((len(tokens), 3), 99.0)], dim=1)
    found = total([(tokens, reference, padded)])
    assert found.same_top1 == 0
    assert found.kl.median > 50
