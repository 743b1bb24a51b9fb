"""Patterns of configs name modules, and cannot make qconv hang."""

from __future__ import annotations

import pytest

from qconv.errors import UnreadableInput
from qconv_safetensors._sources._patterns import check_pattern


@pytest.mark.parametrize(
    "pattern",
    [
        r".*lm_head",
        r".*\.mlp\.gate$",
        r"^model\.layers\.(0|1|27)\..*(gate|up)_proj$",
        r".*\.layers\.[0-9]+\.self_attn.*",
        r"model\.layers\.\d{1,3}\.mlp\.experts\.\d+\..*",
        r"[*+](a)\+",
    ],
)
def test_patterns_that_tools_write_are_taken(pattern):
    check_pattern("config.json", pattern)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(.*)*x", "((ab*)c)*", "(a|b+){2,}", ".*.*.*.*.*.*x", "(a{2,})+"]
)
def test_patterns_that_may_match_for_ever_are_refused(pattern):
    with pytest.raises(UnreadableInput, match=r"config\.json: .* could match for ever; name the"):
        check_pattern("config.json", pattern)


@pytest.mark.parametrize("pattern", ["(", "*", "a{99999999999}"])
def test_what_is_no_regular_expression_is_refused(pattern):
    with pytest.raises(UnreadableInput, match="is no regular expression .* get config.json anew"):
        check_pattern("config.json", pattern)
