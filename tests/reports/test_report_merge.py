"""Reports of separate runs become one."""

from __future__ import annotations

import json

import pytest

from qconv.cli._run import run
from qconv.errors import UsageError
from qconv.reports import merge, read_report, write
from reports.results import artifact, validation


def test_artifacts_come_together_and_the_worst_status_counts():
    first = validation(
        artifact("gguf:q8_0"), command="one", settings={"windows": 4, "depth": "model"}
    )
    second = validation(
        artifact("gguf:q2_k", status="fail"),
        command="two",
        settings={"windows": 4, "depth": "bytes"},
        environment={"python": "3.12", "torch": "2.13"},
        qconv_version="0.2.0",
    )
    merged = merge([first, second])
    assert [each.target for each in merged.artifacts] == ["gguf:q8_0", "gguf:q2_k"]
    assert merged.status == "fail"
    assert merged.command == "one\ntwo"
    assert merged.settings == {"windows": 4, "depth": ["model", "bytes"]}
    assert merged.qconv_version == "0.1.0, 0.2.0"
    assert merged.environment["python"] == "3.11, 3.12"
    assert (merged.source, merged.source_digest) == ("toy", "cd" * 32)


def test_a_report_alone_comes_back_as_it_was():
    alone = validation(artifact(), settings={"windows": 4})
    assert merge([alone]) == alone
    assert merge([alone, alone]) == alone


def test_an_artifact_that_is_there_twice_counts_as_it_was_found_last():
    before, after = artifact(status="unmeasured"), artifact(status="pass")
    other = artifact(digests={"model.gguf": "ef" * 32})
    merged = merge([validation(before, other), validation(after)])
    assert merged.artifacts == (other, after)


def test_reports_that_cannot_be_compared_are_refused():
    with pytest.raises(UsageError, match=r"no report to merge; name two report\.json or more"):
        merge([])
    other = validation(artifact(), source="tiny", source_digest="ef" * 32)
    with pytest.raises(
        UsageError, match=r"toy \(cdcdcdcdcdcd\) and tiny \(efefefefefef\); merge th"
    ):
        merge([validation(artifact()), other])
    texts = [
        validation(artifact(), settings={"windows_digest": digest})
        for digest in ("ab" * 32, None, "ef" * 32)
    ]
    with pytest.raises(UsageError, match=r"different text \(windows abababababab and efefefefefef"):
        merge(texts)
    assert len(merge(texts[:2]).artifacts) == 1


def test_the_command_writes_the_page(tmp_path, capsys):
    paths = [
        str(write(validation(artifact(target)), tmp_path / str(number)).report)
        for number, target in enumerate(("gguf:q8_0", "gguf:q2_k"))
    ]
    assert run(["report", "merge", *paths, "-o", str(tmp_path / "all")]) == 0
    assert "all/report.html: 2 artifacts, pass" in capsys.readouterr().out.replace("\\", "/")
    assert len(read_report(tmp_path / "all" / "report.json").artifacts) == 2
    assert run(["report", "merge", *paths, "-o", str(tmp_path / "all"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "all" / "report.json").read_text())
    assert run(["report", "merge", str(tmp_path / "none.json"), "-o", str(tmp_path)]) == 3
    assert "none.json: cannot be read" in capsys.readouterr().err


def test_baselines_come_together_too():
    one, other = artifact("gguf:q4_0"), artifact("gguf:q2_k")
    merged = merge(
        [
            validation(artifact("gguf:q8_0"), baselines=(one,)),
            validation(artifact("gguf:q6_k"), baselines=(one, other)),
        ]
    )
    assert merged.baselines == (one, other)
