"""Factors of rescaled rows and columns are found whatever rounding left of some of them."""

from __future__ import annotations

import pytest
import torch

from qconv.validation._rescaling import rescaled


def _rounded(values: torch.Tensor) -> torch.Tensor:
    """On 8 bits by row."""
    step = values.abs().amax(1, keepdim=True) / 127
    return (values / step).round() * step


def _off(near: torch.Tensor | None, found: torch.Tensor) -> float:
    assert near is not None
    return float((near - found).norm() / found.norm())


def _source() -> torch.Tensor:
    return torch.randn(96, 160, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("vanishing", [0, 8, 40])
def test_columns_that_rounding_left_nothing_of_do_not_spoil_the_fit(vanishing):
    source = _source()
    generator = torch.Generator().manual_seed(1)
    columns = 0.01 * (torch.rand(160, generator=generator) + 0.5)
    columns[:vanishing] *= 1e-3
    rows = 3 * torch.rand(96, 1, generator=generator) + 0.5
    found = _rounded(source * rows * columns)
    assert int((found == 0).all(0).sum()) == vanishing
    near = rescaled(source, found)
    assert _off(near[:, vanishing:], found[:, vanishing:]) < 0.02


def test_a_column_of_zeros_beside_others_as_they_were_stays_far_off():
    source = _source()
    found = source.clone()
    found[:, 5] = 0
    near = rescaled(source, found)
    torch.testing.assert_close(near[:, 5], source[:, 5], rtol=0.1, atol=0.01)


@pytest.mark.parametrize(("columns", "factor"), [(64, 500.0), (160, 1200.0)])
def test_one_large_column_beside_others_that_hold_their_values(columns, factor):
    source = torch.randn(96, columns, generator=torch.Generator().manual_seed(0))
    found = source.clone()
    found[:, 3] *= factor
    near = rescaled(source, found)
    torch.testing.assert_close(near, found, rtol=1e-3, atol=1e-4)
    turned = rescaled(source.T, found.T)
    torch.testing.assert_close(turned, found.T, rtol=1e-3, atol=1e-4)


def test_a_row_that_holds_something_only_where_columns_hold_little():
    source = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    source[:, 5] = 0
    source[7] = 0
    source[7, 5] = 0.7
    found = source * torch.linspace(1, 2, 64)
    torch.testing.assert_close(rescaled(source, found), found, rtol=1e-3, atol=1e-4)


def test_turned_signs_are_no_rescaling():
    source = _source()
    found = source.clone()
    found[3] *= -1
    assert rescaled(source, found) is None
    assert rescaled(source, torch.zeros_like(source)) is None
