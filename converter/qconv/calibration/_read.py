"""Reads corpora: text, JSON lines and Parquet files, and folders of them. Files may be hostile.

Peak memory: one document or line, whatever the size of the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from qconv.calibration._document import Message
from qconv.calibration._settings import BUILTIN
from qconv.errors import UnreadableInput, Unsupported

#: Plain text, and the messages of a conversation; one of them is empty, or both.
Raw = tuple[str, tuple[Message, ...]]

#: What a corpus may be stored as.
SUFFIXES = (".jsonl", ".parquet", ".txt")

#: A .txt file is parted at the first empty line after this many characters, a few windows' worth,
_DOCUMENT = 8192
#: and at the latest after this many.
_LONGEST_DOCUMENT = 65536
#: No honest line of a corpus is longer; more would only fill memory.
_MAX_LINE = 64 * 1024 * 1024
#: Pieces in which .txt files are read: a line may be as long as the file.
_PIECE = 65536

_BUILTIN = Path(__file__).parent / "builtin"
_CONVERSATIONS = ("messages", "conversations", "conversation")
_TEXTS = ("text", "content")
#: Fields of a question, of what is added to it, and of its answer.
_PAIRS = (
    ("prompt", None, "completion"),
    ("prompt", None, "response"),
    ("instruction", "input", "output"),
    ("instruction", "input", "response"),
    ("question", None, "answer"),
)
#: Role names of ShareGPT files, as chat templates call them.
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def read_source(name: str) -> Iterator[Raw]:
    """Every record of a source, in the order of its files; without text where it has none.

    name: ``builtin``, or the path of a file or folder

    Raises:
        UnreadableInput: it is missing, of unknown kind, damaged, or holds no text fields at all.
    """
    if name == BUILTIN:
        return read_builtin("calibrate")
    return _read_files(_files(Path(name)))


def read_builtin(split: str) -> Iterator[Raw]:
    """The text that comes with qconv. split: ``calibrate`` or ``evaluate``."""
    return _read_jsonl(_BUILTIN / f"{split}.jsonl")


def _read_files(files: list[Path]) -> Iterator[Raw]:
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".txt": _read_txt}
    for path in files:
        yield from readers[path.suffix.lower()](path)


def _files(path: Path) -> list[Path]:
    """The corpus files that ``path`` names, a folder's sorted by path; links are not followed."""
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UnreadableInput(
                f"{path}: calibration text is read from {', '.join(SUFFIXES)} files, not from "
                f"{path.suffix or 'a file without suffix'}; rename or convert it"
            )
        return [path]
    if not path.is_dir():
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise UnreadableInput(
            f"calibration source '{path}' {what}; name a {', '.join(SUFFIXES)} file, a folder "
            "of them, builtin or self"
        )
    found = sorted(
        Path(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    )
    files = [each for each in found if each.is_file() and not each.is_symlink()]
    if not files:
        raise UnreadableInput(
            f"{path}: no {', '.join(SUFFIXES)} file in this folder; put the calibration text there"
        )
    return files


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UnreadableInput(
            f"{path}: cannot be read: {error}; check the file and its permissions"
        ) from error


def _decoded(data: bytes, path: Path, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableInput(
            f"{path}: byte {offset + error.start} is not UTF-8; convert the file to UTF-8"
        ) from error


def _read_txt(path: Path) -> Iterator[Raw]:
    pending = ""
    for piece in _pieces(path):
        pending += piece
        *whole, pending = _parted(pending)
        yield from ((text, ()) for text in whole)
    yield pending, ()


def _pieces(path: Path) -> Iterator[str]:
    """The file's text in pieces; UTF-8 sequences stay whole."""
    with _open(path) as file:
        rest, offset = b"", 0
        while data := file.read(_PIECE):
            data = rest + data
            end = _last_whole(data)
            data, rest = data[:end], data[end:]
            yield _decoded(data, path, offset).lstrip("\ufeff" if not offset else "")
            offset += len(data)
        yield _decoded(rest, path, offset)


def _last_whole(data: bytes) -> int:
    """Where the last UTF-8 sequence begins if it may go on in the next piece; else the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:  # not a byte that goes on with a sequence
            needed = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if needed > back else len(data)
    return len(data)


def _parted(text: str) -> list[str]:
    """``text`` parted into documents; the last one may go on in what is read next."""
    parts: list[str] = []
    start = 0
    while True:
        feed = text.find("\f", start, start + _LONGEST_DOCUMENT)
        blank = text.find("\n\n", start + _DOCUMENT, start + _LONGEST_DOCUMENT)
        if feed >= 0 and (feed < blank or blank < 0):
            parts.append(text[start:feed])
            start = feed + 1
            continue
        if blank < 0 and len(text) - start <= _LONGEST_DOCUMENT:
            return [*parts, text[start:]]
        end = blank if blank >= 0 else start + _LONGEST_DOCUMENT
        parts.append(text[start:end])
        start = end


def _read_jsonl(path: Path) -> Iterator[Raw]:
    seen: set[str] = set()
    usable = number = 0
    with _open(path) as file:
        offset = 0
        while line := file.readline(_MAX_LINE + 1):
            number += 1
            if len(line) > _MAX_LINE:
                raise UnreadableInput(
                    f"{path}: line {number} is longer than {_MAX_LINE} bytes; "
                    "put one document on each line"
                )
            text = _decoded(line, path, offset).lstrip("\ufeff" if not offset else "")
            offset += len(line)
            if not text.strip():
                continue
            record = _parsed(text, path, number)
            raw = _from_record(record)
            seen.update(list(record)[: 8 - len(seen)])
            usable += raw != _NOTHING
            yield raw
    _check_usable(path, usable, seen)


_NOTHING: Raw = ("", ())


def _parsed(text: str, path: Path, number: int) -> Mapping[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableInput(
            f"{path}: line {number} is not JSON: {error}; write one JSON object on each line"
        ) from error
    if not isinstance(record, dict):
        raise UnreadableInput(
            f"{path}: line {number} holds a JSON {type(record).__name__}; "
            'write one JSON object on each line, e.g. {"text": "..."}'
        )
    return record


def _check_usable(path: Path, usable: int, seen: set[str]) -> None:
    if usable:
        return
    held = ", ".join(repr(each[:40]) for each in sorted(seen)) or "nothing"
    raise UnreadableInput(
        f"{path}: no record has text in {', '.join(_TEXTS + _CONVERSATIONS[:2])}, prompt and "
        f"completion, or instruction and output; it holds {held}; rename the fields"
    )


def _from_record(record: Mapping[str, Any]) -> Raw:
    """Text or conversation of a record, by the names that data sets use."""
    for key in _CONVERSATIONS:
        if isinstance(record.get(key), list) and (messages := _messages(record[key])):
            return "", messages
    for key in _TEXTS:
        if isinstance(record.get(key), str):
            return record[key], ()
    for question, more, answer in _PAIRS:
        asked, answered = record.get(question), record.get(answer)
        if isinstance(asked, str) and isinstance(answered, str):
            added = record.get(more) if more else None
            if isinstance(added, str) and added.strip():
                asked = f"{asked}\n\n{added}"
            return "", (("user", asked), ("assistant", answered))
    return _NOTHING


def _messages(entries: list[Any]) -> tuple[Message, ...]:
    found = []
    for entry in entries:
        if not isinstance(entry, Mapping):
            continue
        role = entry.get("role", entry.get("from"))
        content = _content(entry.get("content", entry.get("value")))
        if isinstance(role, str) and content:
            found.append((_ROLES.get(role, role), content))
    return tuple(found)


def _content(value: object) -> str:
    """A message's text; of content in parts, the texts among them."""
    if isinstance(value, str):
        return value
    parts: list[Any] = value if isinstance(value, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _read_parquet(path: Path) -> Iterator[Raw]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise Unsupported(
            f"{path}: reading Parquet needs pyarrow, which is not installed; "
            "pip install 'qconv[parquet]', or convert the file to .jsonl"
        ) from error
    known = {*_CONVERSATIONS, *_TEXTS, *(name for pair in _PAIRS for name in pair if name)}
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in known]
            usable = 0
            for batch in file.iter_batches(batch_size=256, columns=columns) if columns else ():
                for record in batch.to_pylist():
                    raw = _from_record(record)
                    usable += raw != _NOTHING
                    yield raw
            _check_usable(path, usable, set(file.schema_arrow.names[:8]))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UnreadableInput(
            f"{path}: cannot be read as Parquet: {error}; check the file, or get it anew"
        ) from error
