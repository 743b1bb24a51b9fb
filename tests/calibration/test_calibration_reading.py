"""Facts about reading corpora, hostile ones too."""

from __future__ import annotations

import json
import sys

import pytest

from calibration.tokenized import write_jsonl
from qconv.calibration import _read
from qconv.calibration._read import read_builtin, read_source
from qconv.errors import UnreadableInput, Unsupported


def texts(path):
    return [text for text, _ in read_source(str(path))]


def test_a_small_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    assert texts(tmp_path / "a.txt") == ["one\n\ntwo\n"]


def test_form_feeds_part_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one\ftwo\f\n\nthree", encoding="utf-8")
    assert [text.strip() for text in texts(tmp_path / "a.txt")] == ["one", "two", "three"]


def test_a_large_text_file_is_parted_at_empty_lines_and_nothing_is_lost(tmp_path):
    paragraphs = [f"{number} " + "wört " * 300 for number in range(200)]
    whole = "\n\n".join(paragraphs)
    (tmp_path / "a.txt").write_text(whole, encoding="utf-8")
    parts = texts(tmp_path / "a.txt")
    assert "".join(parts) == whole
    assert len(parts) > 20
    assert all(part.lstrip()[0].isdigit() for part in parts)


def test_a_huge_line_is_parted_too(tmp_path):
    whole = "äb" * 300_000
    (tmp_path / "a.txt").write_text(whole, encoding="utf-8")
    parts = texts(tmp_path / "a.txt")
    assert "".join(parts) == whole
    assert max(map(len, parts)) <= 65536


def test_characters_of_several_bytes_survive_the_border_of_a_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(_read, "_PIECE", 5)
    whole = "aé漢😀" * 20
    (tmp_path / "a.txt").write_text(whole, encoding="utf-8")
    assert texts(tmp_path / "a.txt") == [whole]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}')
    assert texts(tmp_path / "a.txt") == texts(tmp_path / "b.jsonl") == ["hello"]


@pytest.mark.parametrize(
    ("record", "raw"),
    [
        ({"text": "a"}, ("a", ())),
        ({"content": "a", "id": 3}, ("a", ())),
        ({"messages": [{"role": "user", "content": "q"}]}, ("", (("user", "q"),))),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            ("", (("user", "q"), ("assistant", "a"))),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, 3]}]},
            ("", (("user", "q"),)),
        ),
        ({"prompt": "q", "completion": "a"}, ("", (("user", "q"), ("assistant", "a")))),
        (
            {"instruction": "q", "input": "i", "output": "a"},
            ("", (("user", "q\n\ni"), ("assistant", "a"))),
        ),
        (
            {"instruction": "q", "input": "", "output": "a"},
            ("", (("user", "q"), ("assistant", "a"))),
        ),
    ],
)
def test_records_are_read_by_the_names_data_sets_use(tmp_path, record, raw):
    path = write_jsonl(tmp_path / "a.jsonl", record)
    assert list(read_source(str(path))) == [raw]


def test_records_without_text_are_empty_among_others(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "a"}, {"id": 1}, {"text": None})
    assert texts(path) == ["a", "", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": ', r"line 2 is not JSON.*write one JSON object on each line"),
        (b"[1, 2]", "line 1 holds a JSON list; write one JSON object"),
        (b'{"text": "\xff"}', "byte 10 is not UTF-8; convert the file to UTF-8"),
        (b'{"title": "a", "id": 3}', "no record has text in.*it holds 'id', 'title'; rename"),
        (b"\n\n", "no record has text in.*it holds nothing"),
        (b"[" * 200_000, "line 1 is not JSON"),
    ],
)
def test_unsound_json_lines_are_refused(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UnreadableInput, match=message):
        list(read_source(str(tmp_path / "a.jsonl")))


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(_read, "_MAX_LINE", 100)
    write_jsonl(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b" * 200})
    with pytest.raises(UnreadableInput, match="line 2 is longer than 100 bytes; put one document"):
        list(read_source(str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize("content", [b"ok \xff\xfe", b"x" * 70_000 + b"\xc3", b"\xe6\xbc"])
def test_text_that_is_not_utf8_is_refused_with_its_place(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    bad = next(at for at in range(len(content)) if content[at] > 127)
    with pytest.raises(UnreadableInput, match=f"byte {bad} is not UTF-8"):
        list(read_source(str(tmp_path / "a.txt")))


def test_folders_are_read_in_the_order_of_their_paths(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b/z.txt", "a.txt", "c.TXT", "b/note.md", ".hidden.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link.txt").symlink_to("/etc/hostname")
    assert texts(tmp_path) == ["a.txt", "b/z.txt", "c.TXT"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", "'.*missing.txt' does not exist; name a .jsonl, .parquet, .txt file"),
        ("notes.pdf", "is read from .jsonl, .parquet, .txt files, not from .pdf; rename"),
        ("empty", "no .jsonl, .parquet, .txt file in this folder"),
    ],
)
def test_other_sources_are_refused(tmp_path, name, message):
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableInput, match=message):
        list(read_source(str(tmp_path / name)))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(Unsupported, match=r"pip install 'qconv\[parquet\]', or convert"):
        list(read_source(str(tmp_path / "a.parquet")))


def test_parquet_is_read_like_json_lines(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = arrow.table(
        {
            "id": [1, 2],
            "messages": [
                [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
                [{"role": "user", "content": "r"}],
            ],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    parquet.write_table(arrow.table({"text": ["one", None]}), tmp_path / "b.parquet")
    assert list(read_source(str(tmp_path))) == [
        ("", (("user", "q"), ("assistant", "a"))),
        ("", (("user", "r"),)),
        ("one", ()),
        ("", ()),
    ]


@pytest.mark.parametrize("name", ["damaged", "no text"])
def test_unsound_parquet_is_refused(tmp_path, name):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    if name == "damaged":
        path.write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1")
        message = "cannot be read as Parquet"
    else:
        parquet.write_table(arrow.table({"id": [1]}), path)
        message = "no record has text.*it holds 'id'"
    with pytest.raises(UnreadableInput, match=message):
        list(read_source(str(path)))


@pytest.mark.parametrize("split", ["calibrate", "evaluate"])
def test_every_line_of_the_builtin_text_is_usable(split):
    records = list(read_builtin(split))
    assert len(records) >= 8
    assert all(text.strip() or messages for text, messages in records)
    assert sum(len(text) for text, _ in records) > 10_000
    json.dumps(records)
