"""Facts about AWQ."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import qconv_awq
from plugins.rescaling import (
    INT4,
    consumer,
    fold,
    inputs,
    output_error,
    snapshot,
    statistics,
    unchanged,
    usable,
    weight,
)
from qconv.errors import Unsupported, UsageError
from qconv.grids import CodebookGrid, FloatGrid, SuperBlockGrid, UniformGrid
from qconv.plugin import API_VERSION
from qconv.testing import check_plugin


def awq(**options: str):
    (spec,) = qconv_awq.qconv_methods()
    return spec.load()(**options)


def test_it_offers_one_transform_that_needs_calibration():
    (spec,) = qconv_awq.qconv_methods()
    assert (spec.name, spec.kind, spec.calibration) == ("awq", "transform", "needed")
    assert spec.api_version == API_VERSION
    check_plugin(qconv_awq)


GRIDS = [
    INT4,
    UniformGrid(bits=4, symmetric=False, group_size=32),
    UniformGrid(bits=3, symmetric=True, group_size="channel"),
    UniformGrid(bits=4, symmetric=False, group_size="tensor"),
    SuperBlockGrid(type="q4_k"),
    CodebookGrid(codebook="nf4"),
    CodebookGrid(codebook="fp4", double_quant=True),
]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.name}")
def test_outliers_of_the_input_gain_on_every_grid(grid):
    columns = 256
    x = inputs(columns)
    given = fold(consumer(grid=grid, weight=weight(48, columns), statistics=statistics(x)))
    scales = awq(rows="all").scales(given)
    assert usable(scales)
    assert output_error(given, scales) < 0.99 * output_error(given, None)


@pytest.mark.parametrize("scope", ["tensor", "channel", "block"])
def test_floats_gain_nothing_much_and_lose_nothing(scope):
    given = fold(consumer(grid=FloatGrid(scope=scope), weight=weight(48, 256),
                          statistics=statistics(inputs(256))))  # fmt: skip
    scales = awq(rows="all").scales(given)
    assert output_error(given, scales) <= output_error(given, None)


@pytest.mark.parametrize("seed", range(6))
def test_the_error_never_rises(seed):
    x = inputs(seed=seed) * torch.rand(32, generator=torch.Generator().manual_seed(seed))
    known = statistics(x)
    given = fold(
        consumer(weight=weight(seed=seed), statistics=known),
        consumer("k_proj", weight=weight(16, seed=seed + 1), statistics=known),
    )
    scales = awq(rows="all").scales(given)
    assert output_error(given, scales) <= output_error(given, None)


def test_nothing_is_rescaled_where_nothing_is_gained():
    # Every weight is on the grid as it is: there is no error to lessen.
    exact = torch.tensor([-8.0, 7.0] * 16).repeat(8, 1) / 8
    assert awq().scales(fold(consumer(weight=exact))) is None


def test_large_channels_are_scaled_up():
    scales = awq().scales(fold())
    assert scales.argsort(descending=True)[:2].sort().values.tolist() == [3, 30]


def test_what_no_input_or_weight_uses_keeps_scales_usable():
    x = inputs()
    x[:, 5] = 0.0
    w = weight()
    w[:, 7] = 0.0
    w[4] = 0.0
    assert usable(awq().scales(fold(consumer(weight=w, statistics=statistics(x)))))
    silent = fold(consumer(statistics=statistics(torch.zeros(4, 32))))
    assert awq().scales(silent) is None
    assert awq().scales(fold(consumer(weight=torch.zeros(8, 32)))) is None


def test_scales_stay_in_bounds_however_far_apart_channels_are():
    x = inputs() * torch.logspace(-12, 12, 32)
    scales = awq().scales(fold(consumer(statistics=statistics(x))))
    assert scales is None or usable(scales)


def test_an_expert_that_saw_no_token_has_no_say():
    seen = consumer("experts.0")
    unseen = consumer("experts.1", weight=weight(seed=9), statistics=None)
    empty = consumer("experts.2", weight=weight(seed=8), statistics=statistics(torch.zeros(0, 32)))
    scales = awq().scales(fold(seen, unseen, empty))
    assert torch.equal(scales, awq().scales(fold(seen, unseen)))
    assert usable(scales)
    assert awq().scales(fold(unseen)) is None
    assert awq().scales(fold(empty)) is None


def test_a_consumer_that_stays_float_costs_nothing():
    router = consumer("router", grid=None, weight=weight(4, seed=5))
    assert usable(awq().scales(fold(consumer(), router)))
    assert awq().scales(fold(router)) is None


def test_how_many_tokens_a_lone_input_saw_changes_nothing():
    known = statistics()
    doubled = known + known
    assert torch.equal(
        awq().scales(fold(consumer(statistics=known))),
        awq().scales(fold(consumer(statistics=doubled))),
    )


def test_an_expert_counts_as_its_tokens_do():
    busy = consumer("experts.0", statistics=statistics(inputs(rows=4096)))
    x = inputs(rows=2, seed=4).flip(1)
    idle = consumer("experts.1", weight=weight(seed=3), statistics=statistics(x))
    given = fold(busy, idle)
    scales = awq(rows="all").scales(given)
    assert output_error(fold(busy), scales) < output_error(fold(busy), None)


def test_grouped_heads_share_a_scale():
    # Two key-value heads of 8, each read by two query heads.
    channel_of = torch.arange(16).view(2, 1, 8).expand(2, 2, 8).reshape(-1)
    given = fold(kind="linear", channels=16, channel_of=channel_of, producer_grid=INT4)
    scales = awq(rows="all").scales(given)
    assert scales.shape == (16,)
    assert usable(scales)
    assert output_error(given, scales) < output_error(given, None)


def test_a_producer_whose_rows_share_a_scale_is_left_alone():
    shared = UniformGrid(bits=8, symmetric=True, group_size="tensor")
    assert awq().scales(fold(kind="linear", producer_grid=shared)) is None


def test_linear_producers_can_be_left_out():
    assert awq(folds="norm").scales(fold(kind="linear", producer_grid=INT4)) is None
    assert awq(folds="norm").scales(fold()) is not None


def test_equal_folds_get_equal_scales_and_nothing_is_modified():
    given = fold(consumer(), consumer("k_proj", weight=weight(16, seed=2)))
    before = snapshot(given)
    scales = awq().scales(given)
    assert unchanged(given, before)
    assert torch.equal(scales, awq().scales(fold(*given.consumers)))


def test_consumers_of_one_input_are_judged_the_same_joined_or_apart():
    both = torch.cat([weight(), weight(16, seed=2)])
    joined = awq(rows="all").scales(fold(consumer(weight=both)))
    apart = fold(consumer(), consumer("k_proj", weight=weight(16, seed=2)))
    assert torch.allclose(joined, awq(rows="all").scales(apart), rtol=1e-6)


def test_a_sample_of_rows_gains_nearly_as_much():
    given = fold(consumer(weight=weight(rows=2048)))
    sampled = output_error(given, awq(rows="256").scales(given))
    assert sampled < 1.02 * output_error(given, awq(rows="all").scales(given))


def test_statistics_without_the_gram_matrix_are_refused():
    given = fold(consumer(statistics=statistics(gram=False)))
    with pytest.raises(Unsupported, match="diagonal of the Gram matrix only"):
        awq().scales(given)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"steps": "0"}, "awq: steps is '0'; choose a whole number from 1 to 100"),
        ({"steps": "many"}, "awq: steps is 'many'; choose"),
        ({"steps": "101"}, "awq: steps is '101'; choose"),
        ({"rows": "-5"}, "awq: rows is '-5'; choose a whole number from 1 to 16777216 or 'all'"),
        ({"rows": "²"}, "awq: rows is '²'; choose"),
        ({"folds": "some"}, "awq: folds is 'some'; choose 'all' or 'norm'"),
    ],
)
def test_options_out_of_range_are_refused(option, text):
    with pytest.raises(UsageError, match=text):
        awq(**option)


def test_the_options_it_declares_are_those_it_takes():
    (spec,) = qconv_awq.qconv_methods()
    assert awq(**{option.name: "all" for option in spec.options if option.name != "steps"})
    assert {option.name for option in spec.options} == {"steps", "rows", "folds"}


def test_listing_it_imports_no_torch():
    code = (
        "import sys, qconv_awq; list(qconv_awq.qconv_methods()); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
