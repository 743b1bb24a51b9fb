"""report.json, junit.xml and the folder they lie in."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest

import qconv.reports
from qconv.errors import UnreadableInput, UsageError
from qconv.reports._junit import junit
from reports.results import HOSTILE, artifact, gate, logits, tensor, validation

SCHEMA = Path(__file__).parents[2] / "schemas" / "validation.schema.json"


def test_a_report_satisfies_its_schema_and_comes_back_as_it_was(tmp_path):
    made = validation(artifact(), artifact("onnx:w8", vram=None, logits=None, method=None))
    written = qconv.reports.write(made, tmp_path / "new" / "folder")
    document = json.loads(written.report.read_text())
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert qconv.reports.read_report(written.report) == made
    document["artifacts"][0]["status"] = "fine"
    with pytest.raises(jsonschema.ValidationError, match="'fine' is not one of"):
        jsonschema.validate(document, json.loads(SCHEMA.read_text()))


def test_what_is_no_number_is_not_taken_for_unmeasured(tmp_path):
    broken = logits(math.nan, perplexity=math.inf)
    written = qconv.reports.write(validation(artifact(logits=broken)), tmp_path)
    document = json.loads(written.report.read_text())
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert document["artifacts"][0]["logits"]["kl"]["mean"] == "NaN"
    found = qconv.reports.read_report(written.report).artifacts[0].logits
    assert found is not None
    assert math.isnan(found.kl.mean)
    assert found.perplexity == math.inf


def test_the_same_validation_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        qconv.reports.write(validation(artifact()), tmp_path / folder)
    for name in ("report.json", "junit.xml", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "junit.xml",
        "report.html",
        "report.json",
    ]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UsageError, match=r"taken: the report cannot be written there \(.*name ano"):
        qconv.reports.write(validation(), tmp_path / "taken")


def test_what_cannot_be_replaced_leaves_no_half_of_a_file(tmp_path):
    (tmp_path / "junit.xml").mkdir()
    with pytest.raises(UsageError, match=r"the report cannot be written there"):
        qconv.reports.write(validation(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["junit.xml", "report.json"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", r"no report of a validation: the document: Invalid JSON.*'qconv validate --report'"),
        ("{}", r"no report of a validation: qconv_version: Field required"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, text, says):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UnreadableInput, match=says):
        qconv.reports.read_report(tmp_path / "report.json")


def test_a_missing_report_is_refused(tmp_path):
    with pytest.raises(UnreadableInput, match=r"none\.json: cannot be read \(No such file"):
        qconv.reports.read_report(tmp_path / "none.json")


def test_gates_are_test_cases_and_unmeasured_is_skipped():
    made = artifact(
        gates=(
            gate(),
            gate("warn", 0.05, name="kl_p99", why="near the limit"),
            gate("fail", 0.8, name="top1", limit=0.9, relation=">="),
            gate("unmeasured", None, name="vram", why="no device"),
        ),
        status="fail",
    )
    root = ET.fromstring(junit(validation(made, status="fail")))
    suite = root.find("testsuite")
    assert suite is not None
    for counted in (root, suite):
        assert (counted.get("tests"), counted.get("failures")) == ("5", "1")
        assert (counted.get("skipped"), counted.get("errors")) == ("1", "0")
    cases = {case.get("name"): case for case in suite}
    assert list(cases["bytes"]) == list(cases["kl"]) == []
    assert "kl_p99" in (cases["kl_p99"].findtext("system-out") or "")
    failure, skipped = cases["top1"].find("failure"), cases["vram"].find("skipped")
    assert failure is not None
    assert skipped is not None
    assert failure.get("message") == "top1 80.0% < 90.0% (the default)"
    assert skipped.get("message") == "vram is unmeasured: no device"
    assert {case.get("classname") for case in suite} == {"qconv.gguf:q4_k_m"}


def test_faults_fail_the_bytes_and_nothing_compared_skips_them():
    faulty = artifact(
        faults=("tensor a is missing",),
        tensors=tuple(tensor(f"t{n}", faults=("all zero",)) for n in range(25)),
    )
    bare = artifact("onnx:w8", tensors=())
    root = ET.fromstring(junit(validation(faulty, bare)))
    (failure,) = root.iter("failure")
    assert (failure.get("message") or "").startswith("tensor a is missing; t0: all zero; t1:")
    assert (failure.get("message") or "").endswith("; and 6 more")
    assert [case.get("message") for case in root.iter("skipped")] == ["no tensor was compared"]


def test_hostile_names_stay_text_in_xml():
    made = dataclasses.replace(artifact(), target=HOSTILE, gates=(gate("fail", name=HOSTILE),))
    root = ET.fromstring(junit(validation(made, source=HOSTILE)))
    assert "<script>" in (root[0].get("name") or "")
    assert "\\x00" in (root[0].get("name") or "")


def test_a_warning_is_a_test_case_that_passes_and_says_so():
    odd = tensor("blk.0.attn_q.weight", warnings=("hold little",))
    text = junit(validation(artifact(tensors=(odd,), warnings=("one too many",))))
    (case, *_) = ET.fromstring(text).iter("testcase")
    assert case.get("name") == "bytes"
    assert case.find("failure") is None
    assert case.findtext("system-out") == "one too many; blk.0.attn_q.weight: hold little"
