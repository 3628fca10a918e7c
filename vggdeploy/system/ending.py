"""The end of a command by a signal: in Python's own order where Python gets its turn, and soon in any case.

Python runs the handler of a signal between two of its own instructions. While a library computes there are none, so a
handler alone would wait for as long as the library does. The operating system's handler, however, writes the signal's
number to a pipe at once, and a thread reads it: when the command has not ended a moment later, the thread ends it.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread, Timer, current_thread, main_thread
from typing import NoReturn

from vggdeploy.system.drafts import remove_unfinished

GRACE = 0.7  # seconds for Python's own order
_PLACING_SECONDS = 5.0  # for a rename that a slow disk has under way
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


@dataclass(frozen=True)
class _Patience:
    """Seconds from a signal to the end, and what is said meanwhile."""

    terminate: float = GRACE
    interrupt: float = GRACE
    note: str = ""


_patience = _Patience()


@contextmanager
def patience(*, terminate: float = GRACE, interrupt: float = GRACE, note: str = "") -> Iterator[None]:
    """In this block an end in order takes longer, and may: seconds after SIGTERM, and after the first Ctrl-C. ``note`` is the
    line on stderr that says so."""
    global _patience  # noqa: PLW0603  # of the process, as its signals are
    before, _patience = _patience, _Patience(terminate, interrupt, note)
    try:
        yield
    finally:
        _patience = before


class Ending:
    """The signal that asked for an end while the work went on; see `deferred`."""

    def __init__(self) -> None:
        self.number = 0

    def asked(self) -> bool:
        return self.number != 0

    def end(self) -> NoReturn:
        """End as the signal would have.

        Raises:
            KeyboardInterrupt, SystemExit: what Ctrl-C and SIGTERM raise.
        """
        if self.number == signal.SIGTERM:
            _exit(self.number, None)
        raise KeyboardInterrupt


@contextmanager
def deferred(*, terminate: float, interrupt: float, note: str) -> Iterator[Ending]:
    """In this block the first Ctrl-C, or SIGTERM, is noted and raises nothing: the work asks for it where it can stop. A
    second one raises at once. In another thread than the main one, which gets no signals, nothing is noted.

    Args:
        terminate, interrupt, note: see `patience`.
    """
    ending = Ending()
    if current_thread() is not main_thread():
        yield ending
        return

    def noted(number: int, frame: object) -> None:
        again, ending.number = ending.asked(), number
        if again:
            ending.end()

    before = {number: signal.signal(number, noted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with patience(terminate=terminate, interrupt=interrupt, note=note):
            yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_within(seconds: float, number: int) -> None:
    """End the process by this signal if it has not ended by itself. For handlers of an event loop that takes the pipe."""
    timer = Timer(seconds, _end, (number,))
    timer.daemon = True
    timer.start()


def end_with_parent(number: int) -> None:
    """The kernel sends this signal here when the parent ends, also when it is killed. (Linux.)"""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it ended just before
        os.kill(os.getpid(), number)


def watch() -> None:
    """From now on SIGTERM and Ctrl-C end this process, whatever it computes. To be called once, in its main thread."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGTERM, _exit)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)
    Thread(target=_watch, args=(reading,), name="vggdeploy-ending", daemon=True).start()


def _exit(number: int, frame: object) -> NoReturn:
    """A container that is stopped sends SIGTERM: what is half-written is removed on the way out, as with Ctrl-C."""
    raise SystemExit(128 + number)


def _forget() -> None:
    """A forked child has its parent's pipe, and no thread that reads it: its signals are not its parent's."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _watch(reading: int) -> None:
    first, presses, end = 0, 0, math.inf
    while True:
        left = None if end == math.inf else max(0.0, end - time.monotonic())
        if not select.select([reading], [], [], left)[0]:
            _end(first)
        for number in os.read(reading, 256):
            now = time.monotonic()
            if number == signal.SIGINT:
                presses += 1
                end = min(end, now + (_patience.interrupt if presses == 1 else GRACE))
            elif number == signal.SIGTERM:
                end = min(end, now + _patience.terminate) if first != signal.SIGTERM else end
            else:
                continue
            if not first and _patience.note:
                os.write(2, f"\n{_patience.note}\n".encode())
            first = first or number


def _end(number: int) -> NoReturn:
    """Without Python's help: no draft, no process that we started and no hidden cursor is left."""
    for pid in _descendants(os.getpid()):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:  # it ended by itself
            continue
    remove_unfinished(_PLACING_SECONDS)
    try:
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)
        if number == signal.SIGINT:
            os.write(2, b"error: interrupted\n  fix: nothing half-written was left behind\n")
    finally:
        os._exit(128 + number)


def _descendants(root: int) -> list[int]:
    """The processes that ``root`` started, those that they started, and so on."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        parent = int(text.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for pid in found:  # it grows meanwhile
        found += children.get(pid, [])
    return found[1:]
