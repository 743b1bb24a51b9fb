"""The pages in a real browser, where one is installed: nothing is wider than the window."""

from __future__ import annotations

import dataclasses
import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from comparison.made import answer, comparison, silent, spoken
from qconv.reports._comparison import comparison_page
from qconv.reports._page import page
from reports.results import artifact, gate, tensor, validation

pytestmark = pytest.mark.slow

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LONG = "a_very_long_name_without_any_break_" * 6

WIDTHS = (320, 390, 760, 1000, 1280)

#: Measures a page in frames of several widths: by how much it scrolls, and what sticks out of it.
MEASURE = """document.title = [...document.querySelectorAll("iframe")].map(frame => {
  const inner = frame.contentDocument, wide = inner.documentElement.clientWidth;
  const out = [...inner.querySelectorAll("body *")].filter(
    each => !each.closest("svg") && each.getBoundingClientRect().right > wide + 1);
  return [inner.documentElement.scrollWidth - wide, ...out.slice(0, 5).map(each => each.outerHTML)];
}).map(found => found.join(" ")).join("; ");
"""
FRAME = '<iframe style="height:900px;width:{width}px" srcdoc="{page}"></iframe>'


def long_names() -> str:
    made = dataclasses.replace(
        artifact(LONG, path=LONG),
        tensors=tuple(tensor(f"{LONG}.{n}.{LONG}", 0.1 * n, faults=(LONG,)) for n in range(3)),
        gates=(gate("fail", name="kl_p99", why=LONG), gate("warn", name=LONG)),
        digests={LONG: "ab" * 32},
        faults=(LONG,),
    )
    many = [artifact(f"safetensors:int4,group_size={2**n}") for n in range(10)]
    return page(validation(made, *many, source=LONG, command=LONG, environment={LONG: LONG}))


def long_texts() -> str:
    texts = [spoken(LONG, answer(LONG, at=5), engine=LONG), spoken("b"), silent("c", LONG)]
    return comparison_page(comparison(*texts, prompts=(LONG,)))


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize("made", [long_names, long_texts])
def test_the_page_never_scrolls_sideways(made, tmp_path):
    assert measured(made(), tmp_path) == "; ".join("0" for _ in WIDTHS)


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_measure_finds_what_is_too_wide(tmp_path):
    wide = page(validation()).replace("<footer>", '<footer style="width:700px">')
    found = measured(wide, tmp_path).split("; ")
    assert [each.partition(" ")[0] != "0" for each in found] == [True, True, False, False, False]


def measured(made: str, folder: Path) -> str:
    """What MEASURE says of a page."""
    shown = html.escape(re.sub(r"<meta http-equiv[^>]*>", "", made), quote=True)
    frames = "".join(FRAME.format(width=width, page=shown) for width in WIDTHS)
    load = f"<script>addEventListener('load', () => {{ {MEASURE} }});</script>"
    (folder / "frames.html").write_text(f"<!DOCTYPE html><title></title>{load}{frames}")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1600,1200"]
    done = subprocess.run(
        [str(BROWSER), *options, "--dump-dom", (folder / "frames.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"<title>([^<]*)</title>", done.stdout)
    assert found
    return html.unescape(found[1])
