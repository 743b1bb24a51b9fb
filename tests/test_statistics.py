"""Facts about the statistics of a linear input."""

from __future__ import annotations

import pytest
import torch

from qconv.errors import Unsupported, UsageError
from qconv.statistics import SAMPLE_ROWS, Statistics, StatisticsSum


def rows(count: int = 600, features: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, features, generator=generator) * torch.rand(
        features, generator=generator
    )


def of(x: torch.Tensor, place: int = 0, *, gram: bool = True) -> Statistics:
    total = StatisticsSum(x.shape[1], gram=gram)
    total.add(x, place)
    return total.total()


def test_they_are_what_their_names_say():
    x = rows()
    statistics = of(x)
    expected = x.double().t() @ x.double() / len(x)
    torch.testing.assert_close(statistics.gram.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        statistics.importance.double(), expected.diagonal(), rtol=1e-6, atol=0
    )
    assert torch.equal(statistics.low, x.amin(0))
    assert torch.equal(statistics.high, x.amax(0))
    assert torch.equal(statistics.abs_max, x.abs().amax(0))
    torch.testing.assert_close(statistics.abs_mean, x.abs().mean(0), rtol=1e-6, atol=0)
    assert statistics.tokens == 600


def test_the_gram_matrix_is_symmetric_to_the_bit():
    gram = of(rows()).gram
    assert torch.equal(gram, gram.t())


def test_two_halves_added_equal_one_pass():
    x = rows()
    whole, halves = of(x), of(x[:250]) + of(x[250:], place=250)
    assert halves.tokens == whole.tokens
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(halves.tensors()[name], tensor, rtol=1e-5, atol=1e-4)
    assert torch.equal(halves.sample, whole.sample)


def test_adding_in_any_order_keeps_the_same_sample():
    x = rows()
    first, second = of(x[:100]), of(x[100:], place=100)
    assert torch.equal((first + second).sample, (second + first).sample)
    assert len((first + second).sample) == SAMPLE_ROWS


def test_divided_is_what_rescaled_rows_would_have_given():
    x, scales = rows(), torch.rand(300, generator=torch.Generator().manual_seed(9)) + 0.5
    divided, direct = of(x).divided(scales), of(x / scales)
    for name, tensor in direct.tensors().items():
        torch.testing.assert_close(divided.tensors()[name], tensor, rtol=1e-4, atol=1e-3)


def test_without_gram_importance_stays_and_the_gram_is_refused():
    statistics = of(rows())
    diagonal = statistics.without_gram()
    assert torch.equal(diagonal.importance, statistics.importance)
    with pytest.raises(Unsupported, match="diagonal of the Gram matrix only.*--statistics full"):
        _ = diagonal.gram
    assert (diagonal + statistics).gram_sum is None


def test_statistics_of_no_tokens_add_nothing_and_lose_nothing():
    statistics, nothing = of(rows()), StatisticsSum(300, gram=False).total()
    assert (statistics + nothing).same(statistics)
    assert (nothing + statistics).same(statistics)


def test_statistics_of_different_inputs_do_not_add_up():
    with pytest.raises(UsageError, match="statistics of 300 and of 200 features"):
        _ = of(rows()) + of(rows(10, 200))


def test_adding_leaves_the_rows_alone_and_no_rows_change_nothing():
    x = rows(20)
    total = StatisticsSum(300)
    total.add(x)
    total.add(x[:0])
    assert torch.equal(x, rows(20))
    assert total.total().same(of(x))


def test_same_tells_statistics_apart():
    assert of(rows()).same(of(rows()))
    assert not of(rows()).same(of(rows() * 2))
    assert not of(rows()).same(of(rows()).without_gram())
