"""Facts about clean documents, duplicates, and the sample that is kept."""

from __future__ import annotations

import unicodedata

import pytest
import torch

from calibration.tokenized import prose
from qconv.calibration._corpus import collect
from qconv.calibration._document import CleaningCounts, clean_document, clean_text, text_digest
from qconv.calibration._duplicates import RUN, NearDuplicates, runs


def clean(text):
    return clean_text(text, CleaningCounts())


#: Letters of Devanagari and emoji, each two made one by a joiner.
JOINED = "\u0915\u094d\u200d\u0937 \U0001f468\u200d\U0001f469"


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("a\x00b\x1b[0mc\ufeff\ud800", "ab[0mc"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("a  \nb\t\n", "a\nb"),
        ("a" + " " * 40 + "b", "a" + " " * 8 + "b"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("def f():\n        return  1", "def f():\n        return  1"),
        ("\n    indented", "    indented"),
        ("see https://a.example/x?y=z#k, then", "see https://a.example, then"),
        ("(http://a.example/x)", "(http://a.example)"),
        ("https://a.example/ and www.b.example", "https://a.example/ and www.b.example"),
        (JOINED, JOINED),
    ],
)
def test_cleaning(given, cleaned):
    assert clean(given) == cleaned
    assert clean(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", clean(given))


def test_what_was_cleaned_is_counted():
    counts = CleaningCounts()
    clean_text("a\x00\x01 https://a.example/b https://c.example", counts)
    assert (counts.control_characters, counts.urls_shortened) == (2, 1)


def test_nothing_is_left_of_blank_documents():
    assert clean_document(" \n\x00", (), CleaningCounts()) is None
    assert clean_document("", (("user", "  "),), CleaningCounts()) is None


def test_a_conversation_keeps_its_roles_and_has_a_text():
    document = clean_document("", (("user", "q\x00"), ("assistant", "a")), CleaningCounts())
    assert document.messages == (("user", "q"), ("assistant", "a"))
    assert document.text == "q\n\na"
    assert document.digest == text_digest("Q, a!")


def collected(*texts, seed=0, most=None):
    return collect([(text, ()) for text in texts], seed=seed, most_characters=most)


def test_equal_texts_count_once_whatever_their_layout():
    corpus = collected("One, two.", "one  two", "ONE\ntwo!", "three", "  ")
    assert len(corpus.documents) == 2
    counts = corpus.counts
    assert (counts.records, counts.duplicates, counts.without_text) == (5, 2, 1)


def test_near_duplicates_count_once():
    text = prose(1, 300)
    changed = text.replace(text.split()[150], "changed")
    corpus = collected(text, changed, prose(2, 300))
    assert len(corpus.documents) == 2
    assert corpus.counts.near_duplicates == 1


def test_texts_that_share_less_than_half_are_kept_apart():
    both = [prose(1, 100) + " " + prose(2, 200), prose(1, 100) + " " + prose(3, 200)]
    assert len(collected(*both).documents) == 2


def test_very_short_texts_can_be_compared():
    known = NearDuplicates()
    assert known.keep("a")
    assert known.keep("漢字")
    assert not known.keep("a")


def test_the_order_of_documents_follows_from_texts_and_seed_alone():
    texts = [prose(number, 20) for number in range(30)]
    order = [document.text for document in collected(*texts).documents]
    assert [document.text for document in collected(*reversed(texts)).documents] == order
    assert [document.text for document in collected(*texts, seed=1).documents] != order


def test_a_bounded_sample_is_the_beginning_of_the_whole():
    texts = [prose(number, 20) for number in range(50)]
    whole = collected(*texts).documents
    some = collected(*texts, most=1000)
    assert some.documents == whole[: len(some.documents)]
    characters = sum(len(document.text) for document in some.documents)
    assert 1000 <= characters < 1500
    assert some.counts.unused == 50 - len(some.documents)


def test_runs_are_shared_exactly_by_texts_that_share_tokens():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 50_000, (100,), generator=generator) for _ in range(2))
    assert len(runs(a)) == 100 - RUN + 1
    assert not runs(a) & runs(b)
    assert len(runs(a) & runs(torch.cat([b, a[40 : 40 + RUN], b]))) == 1
    assert not runs(a) & runs(torch.cat([b, a[40 : 40 + RUN - 1], b]))


def test_rulers_and_blanks_are_no_runs():
    assert not runs(torch.tensor([5, 6, 7] * 20))
    assert runs(torch.tensor([5, 6, 7, 8] * 20))
    assert not runs(torch.arange(RUN - 1))
