"""Artifacts speak in processes of their own, as they do in this one."""

from __future__ import annotations

from pathlib import Path

import pytest

import qconv
from plugins.gguf_models import byte_level_files, llama_config, save_model
from qconv._host import load_plugins
from qconv.comparison._compare import _first_difference, _names
from qconv.errors import UnreadableInput, UsageError

PROMPTS = ("The quick brown", "def main(")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("models")
    return save_model(folder / "tiny", llama_config(), byte_level_files())


@pytest.fixture(scope="module")
def ggufs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("out")
    made = qconv.convert(checkpoint, to=["gguf:f32", "gguf:q2_k"], out=out, threads=1)
    return [artifact.files[0] for artifact in made.artifacts]


def written(path: Path, prompt: str, tokens: int) -> tuple[list[int], str]:
    """What the artifact writes in this process."""
    with load_plugins().runtime(path, 128) as runtime:
        made = runtime.generate(runtime.tokenize(prompt), tokens)
        return made, runtime.detokenize(made)


def test_every_artifact_writes_what_its_engine_writes(checkpoint, ggufs):
    pytest.importorskip("xllamacpp", reason="pip install 'qconv[llama-cpp]'")
    turns: list[tuple[str, int, int]] = []
    found = qconv.compare(
        [checkpoint, *ggufs],
        prompts=PROMPTS,
        tokens=6,
        progress=lambda *turn: turns.append(turn),
    )
    assert [each.reason for each in found.artifacts] == [None, None, None]
    assert [each.engine for each in found.artifacts] == ["transformers", "llama.cpp", "llama.cpp"]
    assert turns == [("tiny", 0, 3), ("tiny-F32.gguf", 1, 3), ("tiny-Q2_K.gguf", 2, 3)]
    for path, each in zip([checkpoint, *ggufs], found.artifacts, strict=True):
        assert each.start_bytes is None or 0 < each.start_bytes < (each.peak_bytes or 0)
        assert each.load_seconds is not None
        assert each.load_seconds > 0
        for prompt, answer in zip(PROMPTS, each.answers, strict=True):
            ids, text = written(path, prompt, 6)
            assert (answer.tokens, answer.text) == (len(ids), text)
            assert answer.tokenized_alike
            assert 0 < answer.seconds < 60
    # The same weights give the same text in another engine; two bits give another.
    assert [answer.parts_at for answer in found.artifacts[1].answers] == [None, None]
    first, coarse = written(checkpoint, PROMPTS[0], 6)[0], written(ggufs[1], PROMPTS[0], 6)[0]
    at = next(at for at in range(6) if first[at] != coarse[at])
    answer = found.artifacts[2].answers[0]
    assert answer.parts_at == at
    with load_plugins().runtime(ggufs[1], 128) as runtime:
        assert answer.text[: answer.parts_at_character] == runtime.detokenize(coarse[:at])


def test_a_prompt_may_be_what_a_user_says(tmp_path, checkpoint):
    files = byte_level_files()
    del files["chat_template.jinja"]
    silent = save_model(tmp_path / "silent", llama_config(), files)
    found = qconv.compare([checkpoint, silent], prompts=["Hello"], tokens=4, chat=True)
    assert found.chat
    with load_plugins().runtime(checkpoint, 128) as runtime:
        ids = runtime.converse("Hello")
        made = runtime.generate(ids, 4)
        assert len(ids) > len(runtime.tokenize("Hello"))
        answer = found.artifacts[0].answers[0]
        assert answer.prompt_tokens == len(ids)
        assert (answer.tokens, answer.text) == (len(made), runtime.detokenize(made))
    assert "there is no chat template" in (found.artifacts[1].reason or "")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a module in the place of a library, in the workers."""

    def put(library: str, source: str) -> None:
        package = tmp_path / "stand-ins" / library
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(package.parent))

    return put


def test_a_missing_engine_is_unmeasured_and_ends_nothing_else(checkpoint, ggufs, stand_in):
    stand_in("xllamacpp", "")
    found = qconv.compare([ggufs[0], checkpoint], prompts=["The"], tokens=2)
    silent, spoken = found.artifacts
    assert found.unmeasured == (silent,)
    assert silent.reason == (
        "llama.cpp is needed here but xllamacpp is missing: pip install 'qconv[llama-cpp]'"
    )
    assert (silent.engine, silent.answers, silent.peak_bytes) == (None, (), None)
    assert spoken.reason is None
    assert spoken.answers[0].parts_at is None


def test_what_a_library_prints_does_not_get_between(checkpoint, stand_in):
    stand_in("transformers", "print('noise', flush=True); raise ImportError('not today')")
    (silent,) = qconv.compare([checkpoint], prompts=["The"]).artifacts
    assert (silent.reason or "").startswith("transformers is needed here but missing")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "the engine's process was ended by SIGKILL; out of memory is the usual cause",
        ),
        (
            "import os, sys; print('bad luck', file=sys.stderr, flush=True); os._exit(7)",
            "the engine's process ended with exit code 7: bad luck",
        ),
        ("raise MemoryError", "out of memory; close other programs, or use a smaller artifact"),
    ],
)
def test_an_engine_that_dies_is_told_of(checkpoint, stand_in, source, says):
    stand_in("transformers", source)
    (silent,) = qconv.compare([checkpoint], prompts=["The"]).artifacts
    assert silent.reason == says


def test_wrong_paths_are_told_before_anything_runs(ggufs, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: pytest.fail("it ran"))
    with pytest.raises(UnreadableInput, match=r"none\.gguf: no such file or folder"):
        qconv.compare([ggufs[0], tmp_path / "none.gguf"], prompts=["The"])


@pytest.mark.parametrize(
    ("artifacts", "prompts", "tokens", "says"),
    [
        ([], ["The"], 8, r"nothing to compare; name two artifacts or more"),
        (["a"], [], 8, r"a prompt is missing or blank; give text to go on with"),
        (["a"], ["The", " \n"], 8, r"a prompt is missing or blank; give text to go on with"),
        (["a"], ["The"], 0, r"tokens is 0, but at least 1 must be written"),
    ],
)
def test_nothing_to_do_is_refused(artifacts, prompts, tokens, says):
    with pytest.raises(UsageError, match=says):
        qconv.compare(artifacts, prompts=prompts, tokens=tokens)


@pytest.mark.parametrize(
    ("ids", "first", "at"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2, 3], [1, 4, 3], 1),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], [1, 2], 2),
        ([], [1], 0),
        ([], [], None),
    ],
)
def test_texts_part_at_the_first_token_that_differs(ids, first, at):
    assert _first_difference(ids, first) == at


def test_names_tell_artifacts_apart():
    assert _names([Path("a/x.gguf"), Path("b/y.gguf")]) == ["x.gguf", "y.gguf"]
    assert _names([Path("a/x.gguf"), Path("b/x.gguf")]) == ["a/x.gguf", "b/x.gguf"]
