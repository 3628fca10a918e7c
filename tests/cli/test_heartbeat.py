"""Nothing is silent for three seconds in a log: by a clock that the test holds, and by slow stand-ins for slow work."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vggdeploy.cli import heartbeat, render
from vggdeploy.cli.app import run
from vggdeploy.cli.heartbeat import SOON, Heartbeat

Said = list[tuple[float, str]]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def beats(heart: Heartbeat, clock: Clock, seconds: float) -> None:
    """Let the time pass as the thread would: asleep until something is due."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now = min(end, clock.now + max(heart.due(), 0.01))
        heart.beat()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(heartbeat, "SOON", SOON)
    return Clock()


def silences(said: Said, start: float, end: float) -> list[float]:
    times = [start, *(at for at, _ in said), end]
    return [b - a for a, b in itertools.pairwise(times)]


@pytest.mark.parametrize("seconds", [60, 1800])  # half an hour is longer than any bench
def test_no_three_seconds_are_silent(clock: Clock, seconds: int) -> None:
    said: Said = []
    heart = Heartbeat(lambda text: said.append((clock.now - 100, text)), "reading my.pth", clock=clock)
    beats(heart, clock, seconds)
    assert max(silences(said, 0, seconds)) < 3
    assert said[0] == (SOON, "reading my.pth (2 s)")


def test_a_log_gets_no_more_lines_than_silence_needs(clock: Clock) -> None:
    said: Said = []
    heart = Heartbeat(lambda text: said.append((clock.now - 100, text)), "training", clock=clock)
    beats(heart, clock, 3600)
    assert len(said) == 3600 / SOON
    assert said[-1][1] == "training (3600 s)"


def test_what_is_said_is_where_it_stands_now(clock: Clock) -> None:
    said: Said = []
    heart = Heartbeat(lambda text: said.append((clock.now, text)), "starting", clock=clock)
    heart.tell(None, "exporting onnx-fp32")
    heart.tell(0.25, "epoch 1/4  loss 2.301")
    heart.tell(0.5, "epoch 2/4  loss 1.207")
    beats(heart, clock, SOON)
    assert [text for _, text in said] == ["exporting onnx-fp32", "epoch 2/4  loss 1.207 (50%, 2 s)"]


def test_nothing_is_added_where_others_speak(clock: Clock) -> None:
    said: list[str] = []
    heart = Heartbeat(said.append, "training", clock=clock)
    for _ in range(20):
        beats(heart, clock, SOON - 0.5)
        heart.heard()  # as a line of an epoch does
    assert said == []


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """stderr as a log, in which silence is due at once."""
    stream = io.StringIO()
    monkeypatch.setattr(render, "err", render._Terminal(file=stream, width=200, soft_wrap=True))
    monkeypatch.setattr(heartbeat, "SOON", 0.0)
    yield stream


def until_heard(log: io.StringIO, words: str) -> bool:
    """Slow work: it goes on until the log says so; the limit only keeps a failing test from hanging."""
    waiting = threading.Event()
    return any(words in log.getvalue() or waiting.wait(0.05) for _ in range(400))


def test_an_export_says_that_it_reads_a_large_file(
    log: io.StringIO, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vggdeploy.export import source

    real = source.import_weights
    weights = checkpoint / "model.safetensors"

    def slow(*args, **options):
        assert until_heard(log, f"reading {weights} (")
        return real(*args, **options)

    monkeypatch.setattr(source, "import_weights", slow)
    line = ["export", str(weights), "-o", str(tmp_path / "b"), "--image-size", "32", "--mean", "0.3", "--std", "0.3"]
    assert run([*line, "--formats", "onnx-fp32"]) == 0


@pytest.mark.parametrize("verb", ["predict", "inspect", "explain"])
def test_opening_a_bundle_is_said(
    verb: str, log: io.StringIO, bundle_dir: Path, digit_png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vggdeploy.bundle import Bundle

    real = Bundle.open

    def slow(*args, **options):
        assert until_heard(log, f"{bundle_dir} (")
        return real(*args, **options)

    monkeypatch.setattr(Bundle, "open", slow)
    assert run([verb, str(bundle_dir), *([str(digit_png)] if verb == "predict" else [])]) == 0


def test_the_scoring_at_the_end_of_an_epoch_is_said(
    log: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vggdeploy.train import run as module

    real = module.evaluate

    def slow(*args, on_batch, **options):
        def scored() -> None:
            on_batch()
            assert until_heard(log, "epoch 1  scoring the validation images (")

        return real(*args, on_batch=scored, **options)

    monkeypatch.setattr(module, "evaluate", slow)
    line = "train --arch vgg11_bn --width 0.0625 --hidden 32 --dataset digits --epochs 1 --per-class 10"
    assert run([*line.split(), "-o", str(tmp_path / "ckpt")]) == 0
    assert "epoch 1/1" in log.getvalue()


def test_quiet_is_quiet(log: io.StringIO) -> None:
    with render.quiet(True), render.progress("working") as tell:
        tell(None, "more work")
        threading.Event().wait(0.2)
    assert log.getvalue() == ""


def test_no_thread_is_left_when_the_work_fails(log: io.StringIO) -> None:
    with pytest.raises(ValueError, match="broken"), render.progress("working"):
        raise ValueError("broken")
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_a_bar_on_a_terminal_has_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase of a minute without news looks alive: the time goes on."""
    stream = io.StringIO()
    monkeypatch.setattr(render, "err", render._Terminal(file=stream, force_terminal=True, width=80))
    with render.progress("reading my.pth"):
        pass
    assert "0:00:00" in stream.getvalue()
