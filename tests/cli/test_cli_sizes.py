"""Sizes and shares as people write them."""

from __future__ import annotations

import pytest

from qconv._words import first_of
from qconv.cli._sizes import format_bytes, format_count, format_seconds, parse_share, parse_size
from qconv.errors import UsageError


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("800MB", 800_000_000),
        ("8GiB", 8 * 2**30),
        ("8gib", 8 * 2**30),
        ("8G", 8 * 10**9),
        ("8Gi", 8 * 2**30),
        ("1.5 kB", 1500),
        ("1000", 1000),
        ("12B", 12),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_mean_what_they_say(text: str, nbytes: int) -> None:
    assert parse_size(text, "--max-ram") == nbytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "1e9",
        "8 X",
        "GB",
        "1.GB",
        "8iB",
        "nan",
        "inf",
        "\u0668GB",
        "0.1",
        "9" * 400,
        "2000000TiB",
    ],
)
def test_other_text_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"--max-ram '.*' is not a size; write e\.g\. 800MB"):
        parse_size(text, "--max-ram")


@pytest.mark.parametrize(
    ("text", "share"),
    [("5%", 0.05), ("5 %", 0.05), ("0.05", 0.05), ("0", 0.0), ("100%", 1.0), ("1", 1.0)],
)
def test_shares_mean_what_they_say(text: str, share: float) -> None:
    assert parse_share(text, "--max-fallback") == share


@pytest.mark.parametrize("text", ["", "5", "101%", "-5%", "%", "5%%", "nan"])
def test_other_text_is_no_share(text: str) -> None:
    with pytest.raises(UsageError, match="--max-fallback '.*' is not a share; write a percentage"):
        parse_share(text, "--max-fallback")


def test_numbers_for_people_are_short() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 105_454_432, 2 * 10**12)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "105.5 MB",
        "2.0 TB",
    ]
    assert format_bytes(999_960) == "1.0 MB"
    assert [format_count(n) for n in (5, 134_515_008)] == ["5", "134.5 M"]
    times = [format_seconds(n) for n in (0.42, 9.96, 12.1, 59.5, 200, 7500)]
    assert times == ["0.4 s", "10.0 s", "13 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]


def test_what_there_is_to_say_is_said_up_to_a_number():
    assert first_of(["a", "b"], 2) == "a, b"
    assert first_of(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert first_of(["a", "b", "c"], 2, "; ") == "a; b; and 1 more"
    assert first_of([], 2) == ""
