"""Facts about the settings of calibration."""

from __future__ import annotations

from pathlib import Path

import pytest

from qconv.calibration import Calibration
from qconv.errors import UsageError


def test_the_defaults_need_no_files():
    settings = Calibration()
    assert [source.name for source in settings.sources] == ["builtin"]
    assert (settings.windows, settings.window_length, settings.seed) == (64, 512, 0)


def test_one_source_may_be_given_as_it_is():
    assert Calibration(source="a.txt") == Calibration(source=("a.txt",))
    assert Calibration(source=Path("a.txt")) == Calibration(source=["a.txt"])
    assert hash(Calibration(source=["a.txt"]))


def test_shares_make_one():
    def shares(*sources):
        return [round(source.share, 3) for source in Calibration(source=sources).sources]

    assert shares("a.txt", "b.txt") == [0.5, 0.5]
    assert shares("a.txt=3", "b.txt=1") == [0.75, 0.25]
    assert shares("a.txt=0.3", "b.txt", "builtin") == [0.3, 0.35, 0.35]


def test_a_file_whose_name_looks_like_a_share_is_a_file(tmp_path):
    path = tmp_path / "mix=0.3"
    path.write_text("x")
    (source,) = Calibration(source=str(path)).sources
    assert (source.name, source.share) == (str(path), 1.0)
    (source,) = Calibration(source="a=b.txt").sources
    assert source.name == "a=b.txt"


def test_labels_have_no_directories():
    labels = [source.label for source in Calibration(source=("/home/me/a.txt", "self")).sources]
    assert labels == ["a.txt", "self"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": "randon"}, "sampling 'randon' is not one of.*did you mean 'random'"),
        ({"sampling": "x"}, "use one of random, diverse, length, perplexity"),
        ({"windows": 0}, "calibration windows 0 must be a whole number of at least 1"),
        ({"window_length": 1}, "window_length 1 must be a whole number of at least 2"),
        ({"window_length": 3.5}, "window_length 3.5 must be a whole number"),
        ({"seed": -1}, "seed -1 must be"),
        ({"seed": True}, "seed True must be"),
        ({"min_tokens_per_expert": 0}, "min_tokens_per_expert 0 must be"),
        ({"source": ()}, "calibration has no source; give one"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, message):
    with pytest.raises(UsageError, match=message):
        Calibration(**settings)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (("a", "a=0.3"), "source is given twice: a, a"),
        (("a=0", "b"), "'a=0': the share 0 must be more than 0"),
        (("a=nan",), "the share nan must be more than 0"),
        (("a=0.6", "b=0.6", "c"), "sum to 1.2, which leaves nothing for the sources without one"),
    ],
)
def test_wrong_shares_are_refused(sources, message):
    with pytest.raises(UsageError, match=message):
        _ = Calibration(source=sources).sources


def test_shares_of_no_number_are_refused():
    with pytest.raises(UsageError, match="shares of sources need a number of windows"):
        _ = Calibration(source=("a=0.5", "b"), windows=None).sources
