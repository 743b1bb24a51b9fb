"""Facts about SmoothQuant."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import qconv_smoothquant
from plugins.rescaling import (
    INT4,
    INT8,
    consumer,
    fold,
    inputs,
    snapshot,
    statistics,
    unchanged,
    usable,
    weight,
)
from qconv.errors import UsageError
from qconv.grids import ActivationGrid, CodebookGrid, FloatGrid, UniformGrid
from qconv.plugin import API_VERSION
from qconv.testing import check_plugin

TOKEN = ActivationGrid()
STATIC = ActivationGrid(scope="tensor", dynamic=False)


def smoothquant(**options: str):
    (spec,) = qconv_smoothquant.qconv_methods()
    return spec.load()(**options)


def w8a8(name="q_proj", activation=TOKEN, **given):
    return consumer(name, INT8, activation, **given)


def product_error(given, scales) -> float:
    """Squared error of what an integer runtime computes on the rows that calibration kept."""
    s = torch.ones(given.channels) if scales is None else scales
    columns, total = s[given.channel_of], 0.0
    for each in given.consumers:
        known = each.statistics
        static = None
        if not each.activation.dynamic:
            static = each.activation.fit_range(known.low / columns, known.high / columns)
        x = each.activation.fake_quantize(known.sample / columns, static)
        codes = each.grid.quantize(each.weight * columns, known.importance / columns.square())
        error = x @ each.grid.decode(*codes).t() - known.sample @ each.weight.t()
        total += float(error.double().square().sum())
    return total


def test_it_offers_one_transform_that_needs_calibration():
    (spec,) = qconv_smoothquant.qconv_methods()
    assert (spec.name, spec.kind, spec.calibration) == ("smoothquant", "transform", "needed")
    assert spec.api_version == API_VERSION
    check_plugin(qconv_smoothquant)


@pytest.mark.parametrize("activation", [TOKEN, STATIC], ids=lambda each: each.name)
def test_outliers_of_the_input_gain_in_integer_arithmetic(activation):
    given = fold(w8a8(activation=activation))
    scales = smoothquant().scales(given)
    assert usable(scales)
    assert product_error(given, scales) < 0.5 * product_error(given, None)


@pytest.mark.parametrize(
    ("grid", "activation"),
    [
        (FloatGrid(scope="channel"), ActivationGrid(kind="float")),
        (FloatGrid(scope="tensor"), ActivationGrid(kind="float", scope="tensor", dynamic=False)),
        (FloatGrid(scope="block"), ActivationGrid(kind="float", scope="group", group_size=16)),
        (CodebookGrid(codebook="nf4", block_size=32), None),
    ],
    ids=["channel", "tensor", "block", "nf4"],
)
def test_floats_and_codebooks_never_lose(grid, activation):
    given = fold(consumer("q_proj", grid, activation or TOKEN))
    assert product_error(given, smoothquant().scales(given)) <= product_error(given, None)


@pytest.mark.parametrize("seed", range(5))
def test_the_searched_error_never_rises(seed):
    x = inputs(seed=seed) * torch.rand(32, generator=torch.Generator().manual_seed(seed))
    given = fold(w8a8(weight=weight(seed=seed), statistics=statistics(x)))
    assert product_error(given, smoothquant().scales(given)) <= product_error(given, None)


def test_a_searched_strength_is_no_worse_than_any_given_one():
    given = fold(w8a8())
    least = product_error(given, smoothquant().scales(given))
    for alpha in ("0", "0.25", "0.5", "0.75", "1"):
        assert least <= product_error(given, smoothquant(alpha=alpha).scales(given))


def test_a_given_strength_is_the_papers_formula():
    given = fold(w8a8(), w8a8("k_proj", weight=weight(16, seed=2)))
    x = given.consumers[0].statistics.abs_max
    w = torch.cat([each.weight for each in given.consumers]).abs().amax(0)
    scales = smoothquant(alpha="0.8").scales(given)
    ratio = scales / (x**0.8 / w**0.2)
    assert torch.allclose(ratio, ratio[0].expand(32), rtol=1e-5)


def test_nothing_moves_where_nothing_is_gained():
    exact = torch.tensor([-127.0, 127.0] * 16).repeat(8, 1) / 127
    x = torch.tensor([-127.0, 127.0] * 16).repeat(8, 1) / 127
    assert smoothquant().scales(fold(w8a8(weight=exact, statistics=statistics(x)))) is None


def test_a_format_that_rounds_weights_only_is_judged_by_them_alone():
    scales = smoothquant().scales(fold(consumer(grid=INT4)))
    assert scales is None or usable(scales)
    assert smoothquant().scales(fold(consumer(grid=None))) is None


def test_what_no_input_or_weight_uses_keeps_scales_usable():
    x = inputs()
    x[:, 5] = 0.0
    w = weight()
    w[:, 7] = 0.0
    w[4] = 0.0
    for alpha in ("0", "0.5", "1", "auto"):
        given = fold(w8a8(weight=w, statistics=statistics(x)))
        assert usable(smoothquant(alpha=alpha).scales(given))
    silent = fold(w8a8(statistics=statistics(torch.zeros(4, 32)), weight=torch.zeros(8, 32)))
    assert smoothquant().scales(silent) is None
    assert usable(smoothquant(alpha="0.5").scales(silent))


def test_scales_stay_in_bounds_however_far_apart_channels_are():
    x = inputs() * torch.logspace(-12, 12, 32)
    assert usable(smoothquant(alpha="1").scales(fold(w8a8(statistics=statistics(x)))))


def test_an_expert_that_saw_no_token_has_no_say_in_the_search():
    seen, unseen = w8a8("experts.0"), w8a8("experts.1", weight=weight(seed=9), statistics=None)
    empty = w8a8("experts.2", weight=weight(seed=8), statistics=statistics(torch.zeros(0, 32)))
    scales = smoothquant().scales(fold(seen, unseen, empty))
    assert usable(scales)
    assert torch.equal(scales, smoothquant().scales(fold(seen, unseen, empty)))
    assert smoothquant().scales(fold(unseen)) is None
    assert smoothquant(alpha="0.5").scales(fold(empty)) is None


def test_grouped_heads_share_a_scale():
    channel_of = torch.arange(16).view(2, 1, 8).expand(2, 2, 8).reshape(-1)
    given = fold(w8a8(), kind="linear", channels=16, channel_of=channel_of, producer_grid=INT8)
    scales = smoothquant().scales(given)
    assert scales.shape == (16,)
    assert usable(scales)
    assert product_error(given, scales) < product_error(given, None)


def test_a_producer_whose_rows_share_a_scale_is_left_alone():
    shared = UniformGrid(bits=8, symmetric=True, group_size="tensor")
    assert smoothquant().scales(fold(w8a8(), kind="linear", producer_grid=shared)) is None


def test_linear_producers_can_be_left_out():
    linear = fold(w8a8(), kind="linear", producer_grid=INT8)
    assert smoothquant(folds="norm").scales(linear) is None
    assert smoothquant(folds="norm").scales(fold(w8a8())) is not None


def test_equal_folds_get_equal_scales_and_nothing_is_modified():
    given = fold(w8a8(), w8a8("k_proj", weight=weight(16, seed=2)))
    before = snapshot(given)
    scales = smoothquant().scales(given)
    assert unchanged(given, before)
    assert torch.equal(scales, smoothquant().scales(fold(*given.consumers)))


def test_a_sample_of_rows_gains_nearly_as_much():
    given = fold(w8a8(weight=weight(rows=2048)))
    best = min(
        product_error(given, smoothquant(alpha=str(step / 20)).scales(given)) for step in range(21)
    )
    assert product_error(given, smoothquant().scales(given)) < 1.05 * best


def test_statistics_without_the_gram_matrix_will_do():
    given = fold(w8a8(statistics=statistics(gram=False)))
    assert torch.equal(smoothquant().scales(given), smoothquant().scales(fold(w8a8())))


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"alpha": "1.5"}, "alpha is '1.5'; choose a number from 0 to 1, or 'auto'"),
        ({"alpha": "nan"}, "alpha is 'nan'; choose"),
        ({"alpha": "strong"}, "alpha is 'strong'; choose"),
        ({"folds": "some"}, "smoothquant: folds is 'some'; choose 'all' or 'norm'"),
    ],
)
def test_options_out_of_range_are_refused(option, text):
    with pytest.raises(UsageError, match=text):
        smoothquant(**option)


def test_the_options_it_declares_are_those_it_takes():
    (spec,) = qconv_smoothquant.qconv_methods()
    assert {option.name for option in spec.options} == {"alpha", "folds"}
    assert smoothquant(alpha="auto", folds="norm")


def test_listing_it_imports_no_torch():
    code = (
        "import sys, qconv_smoothquant; list(qconv_smoothquant.qconv_methods()); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
