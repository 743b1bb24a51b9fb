"""The page of a comparison."""

from __future__ import annotations

from comparison.made import answer, comparison, silent, spoken
from qconv.reports import write_comparison
from qconv.reports._comparison import comparison_page
from reports.results import HOSTILE
from reports.test_report_page import Parsed


def test_who_wrote_what_stands_side_by_side():
    second = spoken("other", answer(" Paris, a river", at=10, tokenized_alike=False))
    parsed = Parsed(comparison_page(comparison(spoken("toy"), second, silent())))
    for told in (
        "llama.cpp 1.2",
        "450.0 MB",
        "12.0",
        "6 tokens in 0.5 s, parts at token 4, its tokenizer reads the prompt otherwise",
        "no engine: pip install it",
        "qconv compare toy other --prompt 'The capital'",
    ):
        assert told in parsed.text
    assert parsed.tags.count("mark") == 1
    assert "river" in parsed.words


def test_no_text_becomes_markup():
    named = spoken(HOSTILE, answer(HOSTILE, at=3), engine=HOSTILE)
    made = comparison(named, silent(HOSTILE, HOSTILE), prompts=(HOSTILE,))
    parsed = Parsed(comparison_page(made))
    assert {"script", "img"}.isdisjoint(parsed.tags)
    assert parsed.text.count("alert('x')") >= 6


def test_the_same_comparison_gives_the_same_bytes(tmp_path):
    made = comparison(spoken("toy"), silent())
    pages = [write_comparison(made, tmp_path / name) for name in "ab"]
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "comparison.html",
        "comparison.json",
    ]
