"""The page: whole without anything from outside, safe with any text, and honest first of all."""

from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from qconv.reports._figures import figure, gate_words, labels, worst_tensors
from qconv.reports._heatmap import heatmap
from qconv.reports._markup import Markup, element
from qconv.reports._page import page
from qconv.reports._texts import shared
from qconv.validation import TextSample
from reports.results import HOSTILE, artifact, gate, logits, tensor, validation

VOID = {"meta", "br"}


class Parsed(HTMLParser):
    """The elements, attributes and words of a page; fails on an element that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def hostile() -> Any:
    """A validation in which every text that a file could bring is hostile."""
    base = artifact()
    return validation(
        dataclasses.replace(
            base,
            target=HOSTILE,
            path=HOSTILE,
            method=HOSTILE,
            digests={HOSTILE: HOSTILE},
            tensors=(tensor(HOSTILE, faults=(HOSTILE,), grid=HOSTILE),),
            runtimes=(dataclasses.replace(base.runtimes[0], engine=HOSTILE, reason=HOSTILE),),
            gates=(gate("fail", name=HOSTILE, why=HOSTILE),),
            faults=(HOSTILE,),
            samples=(TextSample(prompt=HOSTILE, texts={HOSTILE: HOSTILE}, seconds={}),),
        ),
        source=HOSTILE,
        settings={HOSTILE: [HOSTILE]},
        environment={HOSTILE: HOSTILE},
        command=HOSTILE,
    )


def test_warnings_are_told_after_what_does_not_hold():
    odd = tensor("blk.9.attn_q.weight", 0.001, warnings=("hold little",))
    made = artifact(status="warn", tensors=(tensor("a", 0.5), odd), warnings=("one too many",))
    text = Parsed(page(validation(made, status="warn"))).text
    assert "passes with warnings: one too many; blk.9.attn_q.weight: hold little" in text
    assert "Warnings one too many" in text
    assert worst_tensors(made, 1) == (1,)


def test_what_was_to_be_beaten_is_told_and_not_judged():
    beats = gate("warn", 1.03, name="beats", limit=1.0, why="0.98 times the KL divergence of rtn")
    made = validation(
        artifact(gates=(gate(), beats), status="warn"),
        status="warn",
        baselines=(artifact(path="rtn.gguf", status="fail"),),
    )
    text = Parsed(page(made)).text
    assert "Baseline, measured and not judged: rtn.gguf (gguf:q4_k_m, 100.0 MB), mean KL" in text
    assert "KL divergence / the baseline's, upper end of its 95 % interval" in text
    assert "passes with warnings: beats 1.03 > 1.00" in text


def test_no_text_becomes_markup():
    parsed = Parsed(page(hostile()))
    assert {"script", "img"}.isdisjoint(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.text.count("<script>alert('x')</script>") >= 15


def test_control_characters_are_shown_and_not_obeyed():
    text = page(hostile())
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", text)
    assert "\\x1b[31m \\u202eevil" in text


def test_nothing_comes_from_outside_and_nothing_runs():
    text = page(validation(artifact(), artifact("onnx:w8")))
    parsed = Parsed(text)
    loaded = [value for name, value in parsed.attributes if name in {"src", "href", "action"}]
    assert loaded
    assert all(value.startswith("#artifact-") for value in loaded)
    assert not re.search(r"url\(|@import|<link|<script", text)
    policies = [value for name, value in parsed.attributes if name == "content"]
    assert any(value.startswith("default-src 'none'") for value in policies)


def test_the_same_validation_gives_the_same_page():
    assert page(hostile()) == page(hostile())


def test_the_verdict_comes_first_with_its_reasons():
    failing = artifact(gates=(gate("fail", 0.31), gate("pass", name="top1")), status="fail")
    text = Parsed(page(validation(artifact("gguf:q8_0"), failing, status="fail"))).text
    assert "1 of 2 artifacts pass." in text
    said = text.index("gguf:q4_k_m fails: kl 0.310 > 0.0600")
    assert said < text.index("bits per weight")


def test_what_was_not_measured_is_never_called_a_pass():
    bare = artifact(
        tensors=(),
        blocks=(),
        logits=None,
        runtimes=(),
        vram=None,
        samples=(),
        gates=(gate("unmeasured", None, why="no windows were run"),),
        status="unmeasured",
    )
    parsed = Parsed(page(validation(bare, status="unmeasured")))
    assert "kl is unmeasured: no windows were run" in parsed.text
    assert "pass" not in [value for name, value in parsed.attributes if name == "class"]
    assert parsed.text.count("unmeasured") >= 6
    assert "svg" not in parsed.tags


def test_a_validation_of_nothing_is_a_page_too():
    assert "There is no artifact to judge." in page(validation(status="unmeasured"))


def test_long_lists_of_reasons_end():
    gates = tuple(gate("fail", 0.3, name=f"gate{number}") for number in range(30))
    many = [artifact(f"gguf:{number}", gates=gates, status="fail") for number in range(20)]
    text = page(validation(*many, status="fail"))
    assert "gguf:11 fails: gate0 0.300 &gt; 0.0600; gate1" in text
    assert "gguf:12 fails" not in text
    assert text.count("gate5 0.300 &gt; 0.0600; and 24 more") == 12
    assert "and 8 more, told below" in text


def test_figures_that_are_none_are_told_and_not_drawn():
    broken = artifact("gguf:q2_k", logits=logits(math.nan), blocks=())
    text = page(validation(broken))
    assert "NaN" in text
    assert "Mean KL divergence from the source against the size" not in text


def test_every_artifact_is_a_point_and_its_own_colour():
    names = [f"gguf:{number}" for number in range(3)]
    made = [artifact(name, bytes=10**8 * (at + 1)) for at, name in enumerate(names)]
    parsed = Parsed(page(validation(*made)))
    kinds = [value for name, value in parsed.attributes if name == "class"]
    for place in range(3):
        assert f"dot s{place}" in kinds
        assert f"curve s{place}" in kinds


def test_memory_is_only_called_measured_where_it_was():
    predicted = artifact().vram
    assert predicted is not None
    known = dataclasses.replace(predicted, device="cuda", assumptions=("nothing else is there",))
    text = Parsed(page(validation(artifact(vram=known)))).text
    assert "900.0 MB to 1.0 GB" in text
    assert "Nothing was measured." in text
    assert "nothing else is there" in text
    assert "diamond" not in text
    measured = dataclasses.replace(known, measured=950_000_000)
    text = Parsed(page(validation(artifact(vram=measured)))).text
    assert "The diamond was measured on cuda." in text
    assert "gguf:q4_k_m: measured 950.0 MB" in text


def test_the_page_says_how_to_repeat_it():
    text = Parsed(page(validation(artifact()))).text
    for told in ("qconv validate q4_k_m.gguf --against toy", "cd" * 32, "kl 0.06", "x86_64"):
        assert told in text


def test_texts_part_where_they_differ():
    text = page(validation(artifact()))
    assert "Paris, a <mark>river</mark>" in text
    assert "<p>Paris, a city</p>" in text


@pytest.mark.parametrize(
    ("text", "reference", "same"),
    [
        ("Paris, a river", "Paris, a city", "Paris, a "),
        ("Paris", "Paris", "Paris"),
        ("Paris is", "Paris", "Paris"),
        ("Par", "Paris", "Par"),
        ("", "Paris", ""),
        ("one two", "one twice", "one "),
    ],
)
def test_what_texts_share_ends_with_a_word(text, reference, same):
    assert text[: shared(text, reference)] == same


def test_artifacts_of_one_target_are_told_apart():
    assert labels(validation(artifact(), artifact("onnx:w8"))) == ("gguf:q4_k_m", "onnx:w8")
    by_method = labels(validation(artifact(), artifact(method="awq")))
    assert by_method == ("gguf:q4_k_m by rtn", "gguf:q4_k_m by awq")
    by_path = labels(validation(artifact(), artifact(path="other.gguf")))
    assert by_path == ("gguf:q4_k_m by rtn, q4_k_m.gguf", "gguf:q4_k_m by rtn, other.gguf")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "unmeasured"),
        (0.0, "0"),
        (0.0123456, "0.0123"),
        (1.005, "1.00"),
        (87.36, "87.4"),
        (12345.0, "12345"),
        (1.2e-5, "1.20e-05"),
        (4.5e7, "4.50e+07"),
        (math.nan, "NaN"),
        (-math.inf, "-infinite"),
    ],
)
def test_figures_have_three_digits_that_count(value, said):
    assert figure(value) == said


def test_gates_speak_in_their_units():
    assert gate_words(gate()) == "kl 0.0100 <= 0.0600"
    vram = gate("fail", 9e9, name="vram", limit=8e9)
    assert gate_words(vram) == "vram 9.0 GB > 8.0 GB"
    top1 = gate("warn", 0.89, name="top1", limit=0.9, relation=">=")
    assert gate_words(top1) == "top1 89.0% < 90.0%"
    ratio = gate("pass", 1.0012, name="ppl", limit=1.005)
    assert gate_words(ratio) == "ppl 1.0012 <= 1.0050"


def test_the_worst_tensors_are_the_faulty_ones_then_those_over_their_limit():
    tensors = (
        tensor("exact", 0.0),
        tensor("large", 0.5),
        tensor("over", 0.02, limit=0.01),
        tensor("nan", math.nan),
        tensor("faulty", None, faults=("is missing",)),
        tensor("unseen", None),
    )
    made = artifact(tensors=tensors)
    found = [tensors[place].name for place in worst_tensors(made, 9)]
    assert found == ["faulty", "over", "nan", "large"]


def cells(tensors: Any) -> list[tuple[str, str]]:
    """Titles and shades of a heat map's cells."""
    drawn = heatmap(tensors, "x")
    assert drawn is not None
    found = re.findall(r'<rect[^>]* class="(\w+)"><title>([^<]*)</title>', drawn.picture)
    return [(title, shade) for shade, title in found]


def test_experts_of_a_block_share_a_cell_that_shows_the_worst():
    tensors = [
        tensor(f"model.layers.{block}.experts.{expert}.up_proj.weight", 0.01 * (expert + 1))
        for block in range(2)
        for expert in range(4)
    ]
    assert [title for title, _ in cells(tensors)] == [
        f"model.layers.{block}.experts.3.up_proj.weight: 0.0400" for block in range(2)
    ]


def test_shades_follow_the_error_and_one_tiny_error_does_not_flatten_them():
    tensors = [tensor("embed", 1e-6)]
    tensors += [tensor(f"blk.{n}.q", 0.01 * 2 ** (n / 10)) for n in range(31)]
    tensors += [tensor("blk.0.norm", 0.0), tensor("blk.1.norm", math.nan)]
    shades = dict(cells(tensors))
    assert shades["embed: 1.00e-06"] == "h0"
    assert shades["blk.0.q: 0.0100"] == "h0"
    assert shades["blk.30.q: 0.0800"] == "h5"
    assert shades["blk.15.q: 0.0283"] in {"h2", "h3"}
    assert shades["blk.0.norm: 0"] == "exact"
    assert shades["blk.1.norm: infinite"] == "broken"


def test_a_heat_map_needs_an_error():
    assert heatmap([tensor("a", 0.0), tensor("b", None)], "x") is None


def test_kinds_beyond_a_screen_are_counted():
    tensors = [tensor(f"kind{number}", 0.001 * (number + 1)) for number in range(40)]
    drawn = heatmap(tensors, "x")
    assert drawn is not None
    assert drawn.left_out == 16
    assert "kind39" in drawn.picture
    assert "kind0:" not in drawn.picture


def test_numbers_in_hostile_names_cost_nothing():
    assert cells([tensor(f"blk.{'9' * 5000}.q", 0.1)])[0][1] == "h0"


def test_elements_escape_all_but_markup():
    made = element("p", "<", [Markup("<b>"), None, 3], class_='"', data_x="&", hidden=True, id=None)
    assert made == '<p class="&quot;" data-x="&amp;" hidden>&lt;<b>3</p>'
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'
