"""Files of a model directory that may be hostile: none of them may lead out of it."""

from __future__ import annotations

from pathlib import Path

from qconv.checkpoint._faults import shown
from qconv.checkpoint._mapped import refuse_irregular
from qconv.checkpoint._strict_json import parse_object
from qconv.errors import UnreadableInput

#: The companions that converters and runtimes read.
_COMPANIONS = frozenset(
    {
        "LICENSE",
        "LICENSE.md",
        "LICENSE.txt",
        "NOTICE",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "hf_quant_config.json",
        "merges.txt",
        "preprocessor_config.json",
        "processor_config.json",
        "quant_config.json",
        "quantize_config.json",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tekken.json",
        "tiktoken.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
        "vocab.json",
        "vocab.txt",
    }
)

#: The largest known tokenizer.json takes about a seventh.
_MAX_COMPANION = 256 * 1024 * 1024


def names(directory: Path) -> list[str]:
    """The names of what the directory holds, sorted.

    Raises:
        UnreadableInput: the directory cannot be listed.
    """
    try:
        return sorted(entry.name for entry in directory.iterdir())
    except OSError as error:
        raise UnreadableInput(
            f"{directory}: cannot be listed: {error}; check its permissions"
        ) from error


def member(directory: Path, name: str) -> Path:
    """The file ``name`` of the directory, links followed.

    A link may lead to a file of the directory itself or, in a Hugging Face cache, from
    ``snapshots/<revision>/`` to ``blobs/``; anything else could smuggle private files into an
    artifact.

    Raises:
        UnreadableInput: the name or the link leads out of the directory.
    """
    if name in {"", ".", ".."} or not name.isprintable() or set(name) & set("/\\:"):
        raise UnreadableInput(
            f"{directory}: {shown(name)} must be a plain file name of this directory; "
            "the index is damaged or hostile, get it anew"
        )
    path = directory / name
    try:
        home, target = directory.resolve(strict=True), path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise UnreadableInput(
            f"{path}: cannot be found: {error}; the model is incomplete, get all its files"
        ) from error
    allowed = {home}
    if home.parent.name == "snapshots":
        allowed.add(home.parent.parent / "blobs")
    if target.parent not in allowed:
        raise UnreadableInput(
            f"{path}: links to {target}, outside its directory; "
            "put the file itself there if you trust it"
        )
    return target


def read_companions(directory: Path) -> dict[str, bytes]:
    """The companions that exist, by file name.

    Raises:
        UnreadableInput: one of them is too large, unreadable, not a file, or leads elsewhere.
    """
    present = _COMPANIONS & set(names(directory))
    return {name: read_small(member(directory, name)) for name in sorted(present)}


def read_small(path: Path) -> bytes:
    """A whole file of at most 256 MB.

    Raises:
        UnreadableInput: the file is too large, unreadable or not a regular file.
    """
    try:
        status = path.stat()
        refuse_irregular(path, status)
        if status.st_size > _MAX_COMPANION:
            raise UnreadableInput(
                f"{path}: {status.st_size} bytes, but a companion file may take at most "
                f"{_MAX_COMPANION}; check that it belongs to the model"
            )
        with path.open("rb") as file:
            return file.read(status.st_size)
    except OSError as error:
        raise UnreadableInput(
            f"{path}: cannot be read: {error}; check the file and its permissions"
        ) from error


def read_index(path: Path) -> dict[str, str]:
    """The weight map of a ``*.safetensors.index.json``: shard file name by tensor name.

    Raises:
        UnreadableInput: the index is malformed or names anything but plain files.
    """
    weight_map = parse_object(read_small(path), str(path)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnreadableInput(
            f"{path}: weight_map must be an object that names each tensor's file, "
            f"not {shown(weight_map)}; get the index anew"
        )
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise UnreadableInput(
                f"{path}: tensor {shown(tensor)}: {shown(name)} is not the name of a "
                ".safetensors file; get the index anew"
            )
    return weight_map
