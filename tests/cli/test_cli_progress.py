"""What a conversion shows while it runs."""

from __future__ import annotations

import io
import re

import pytest

from qconv.cli._progress import Progress, reading, warned_of
from qconv.plugin import (
    ArtifactFinished,
    Comparing,
    ConversionFailed,
    ConversionFinished,
    ConversionStarted,
    TensorFinished,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def started(resumed: int = 0) -> ConversionStarted:
    return ConversionStarted(
        source="models/[bold]x",
        targets=("gguf:q8_0", "gguf:q4_k_m"),
        tensors=4,
        weights=4_000_000,
        nbytes_out=2_000_000,
        resumed_nbytes=resumed,
    )


def finished(nbytes: int = 500_000) -> TensorFinished:
    return TensorFinished(
        target="gguf:q8_0", tensor="w", weights=1_000_000, nbytes=nbytes, last=True
    )


def test_the_proof_of_a_transcoding_is_a_stage_of_its_own() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock) as progress:
        progress(started())
        progress(finished())
        clock.now += 12
        progress(Comparing(target="gguf:q8_0", done=3, tensors=4))
    assert "3/4 proven equal, 1/4 tensors" in stream.getvalue()


def test_a_log_gets_a_line_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock) as progress:
        progress(started())
        for seconds in (4, 4, 4):
            clock.now += seconds
            progress(finished())
        progress(ConversionFinished(seconds=12.0))
    opening, line = stream.getvalue().splitlines()
    assert opening == "converting models/[bold]x to gguf:q8_0, gguf:q4_k_m"
    assert line == " 75%  3/4 tensors, 1.5 MB of 2.0 MB, 250.0 k weights/s, 4.0 s left"


def test_resumed_bytes_count_as_done_but_not_as_speed() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream=stream, clock=clock)
    progress(started(resumed=1_000_000))
    clock.now += 10
    progress(finished())
    opening, line = stream.getvalue().splitlines()
    assert opening.endswith("gguf:q4_k_m, 1.0 MB there already")
    assert line == " 75%  1/4 tensors, 1.5 MB of 2.0 MB, 100.0 k weights/s, 10 s left"


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    stream, clock = Terminal(), Clock()
    with Progress(stream=stream, clock=clock) as progress:
        progress(started())
        clock.now += 1
        progress(finished())
        progress(finished())
        progress(ArtifactFinished(target="gguf:q8_0", files=(), nbytes=1))
        progress(ConversionFinished(seconds=1.0))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "models/[bold]x to gguf:q8_0, gguf:q4_k_m" in text
    assert "2/4 tensors, 1.0 MB of 2.0 MB" in text
    assert " 50%" in text
    assert stream.getvalue().rstrip().endswith("\x1b[2K")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet_shows_nothing(stream: io.StringIO) -> None:
    with Progress(quiet=True, stream=stream) as progress:
        progress(started())
        progress(finished())
        progress(ConversionFinished(seconds=1.0))
    assert stream.getvalue() == ""


def test_the_bar_goes_away_when_the_work_fails() -> None:
    stream = Terminal()

    def fail() -> None:
        with Progress(stream=stream, clock=Clock()) as progress:
            progress(started())
            progress(ConversionFailed(error=ValueError()))
            raise ValueError

    with pytest.raises(ValueError, match=r"\A\Z"):
        fail()
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is back


def test_no_time_is_foretold_from_the_first_small_tensor() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream=stream, clock=clock)
    progress(started())
    clock.now += 20
    progress(finished(nbytes=1000))
    assert stream.getvalue().splitlines()[1].endswith("50.0 k weights/s")


def test_a_source_without_bytes_divides_nothing_by_zero() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream=stream, clock=clock)
    progress(
        ConversionStarted(
            source="m", targets=(), tensors=0, weights=0, nbytes_out=0, resumed_nbytes=0
        )
    )
    clock.now += 20
    progress(finished(nbytes=0))
    assert stream.getvalue().splitlines()[1].startswith("  0%  1/0 tensors, 0 bytes of 0 bytes")


def test_warnings_come_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[object] = []
    event = ConversionStarted(
        source="m",
        targets=("toy:f32",),
        tensors=1,
        weights=1,
        nbytes_out=1,
        resumed_nbytes=0,
        warnings=("mind the gap",),
    )
    warned_of(seen.append)(event)
    assert seen == [event]
    assert capsys.readouterr().err == "warning: mind the gap\n"


def test_reading_shows_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with reading() as progress:
        assert progress is None
    assert capsys.readouterr().err == ""


def test_reading_shows_tensor_and_share_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with reading() as progress:
        assert progress is not None
        progress("blk.[0]", 1, 4)
    assert "25%" in stream.getvalue()
    assert "blk.[0]" in stream.getvalue()
    with reading(quiet=True) as progress:
        assert progress is None
