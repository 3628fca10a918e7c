"""Progress as one rising number, and Ctrl-C that waits until the library has stopped."""

from __future__ import annotations

import signal
import threading

import pytest

from vggdeploy.build.progress import PhaseTracker, interruptible


def test_a_phase_takes_the_room_of_its_parent_s_current_step():
    told: list[float] = []
    tracker = PhaseTracker(lambda share, phase: told.append(share), threading.Event())
    tracker.start("build", None, 4)
    tracker.step("build", 0)
    tracker.start("optimise", "build", 2)
    tracker.step("optimise", 0)
    tracker.step("optimise", 1)
    tracker.finish("optimise")
    tracker.step("build", 1)
    tracker.finish("build")
    assert told == pytest.approx([0.25, 0.375, 0.5, 0.5, 0.5, 1.0])


def test_the_share_never_falls_and_never_passes_one():
    told: list[float] = []
    tracker = PhaseTracker(lambda share, phase: told.append(share), threading.Event())
    tracker.start("build", None, 2)
    tracker.start("first", "build", 1)
    tracker.finish("first")  # half
    tracker.start("second", "build", 10)  # the library never said that the first step was done
    tracker.step("second", 0)
    tracker.step("second", 99)  # more steps than it announced
    tracker.step("nobody", 0)  # a phase that was never started
    tracker.finish("build")
    assert told == sorted(told)
    assert told[-1] == 1


def test_cancelling_stops_at_the_next_step_and_no_more_is_told():
    told: list[float] = []
    cancelled = threading.Event()
    tracker = PhaseTracker(lambda share, phase: told.append(share), cancelled)
    tracker.start("build", None, 3)
    assert tracker.step("build", 0) is True
    cancelled.set()
    assert tracker.step("build", 1) is False
    assert len(told) == 1


def test_ctrl_c_is_raised_when_the_block_has_ended_however_often_it_was_pressed():
    cancelled, steps = threading.Event(), []
    with pytest.raises(KeyboardInterrupt), interruptible(cancelled):
        for step in range(3):
            signal.raise_signal(signal.SIGINT)
            steps.append(step)
        assert cancelled.is_set()
    assert steps == [0, 1, 2]
    with pytest.raises(KeyboardInterrupt):  # the old handler is back
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_wins_over_the_error_that_it_caused():
    with pytest.raises(KeyboardInterrupt), interruptible(threading.Event()):
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError


def test_an_error_without_ctrl_c_comes_out_as_it_is():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), interruptible(threading.Event()):
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_a_program_s_own_handler_is_called_after_the_block():
    calls: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    try:
        with interruptible(threading.Event()):
            signal.raise_signal(signal.SIGINT)
            assert calls == []
        assert calls == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_the_handler_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with interruptible(threading.Event()):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
