"""A build's progress as one number, and a way to stop it that never raises inside the library's C++."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, current_thread, main_thread
from types import FrameType
from typing import Any

from vggdeploy.types import OnProgress


@dataclass
class _Phase:
    start: float
    width: float
    steps: int
    done: int = 0

    @property
    def position(self) -> float:
        return self.start + self.width * min(self.done, self.steps) / self.steps


class PhaseTracker:
    """TensorRT reports nested phases; a phase takes the room of its parent's current step. The share never falls."""

    def __init__(self, on_progress: OnProgress, cancelled: Event) -> None:
        self._report = on_progress
        self._cancelled = cancelled
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0
        self.error: BaseException | None = None

    def start(self, name: str, parent: str | None, steps: int) -> None:
        above = self._phases.get(parent) if parent else None
        start, width = (above.position, above.width / above.steps) if above else (0.0, 1.0)
        self._phases[name] = _Phase(start, width, max(1, steps))

    def step(self, name: str, step: int) -> bool:
        """One step is done. False tells the library to stop."""
        phase = self._phases.get(name)
        if phase is not None:
            phase.done = step + 1
            self._tell(phase.position, name)
        return not self._cancelled.is_set()

    def finish(self, name: str) -> None:
        phase = self._phases.pop(name, None)
        if phase is not None:
            self._tell(phase.start + phase.width, name)

    def _tell(self, share: float, name: str) -> None:
        self._share = max(self._share, min(share, 1.0))
        if self._cancelled.is_set():
            return
        try:
            self._report(self._share, name)
        except BaseException as error:  # it must not unwind through C++; the builder raises it after the build stopped
            self.error = error
            self._cancelled.set()


def monitor_for(library: Any, tracker: PhaseTracker) -> Any:
    """An ``IProgressMonitor`` of ``library`` that feeds ``tracker``."""

    def start(self: Any) -> None:
        library.IProgressMonitor.__init__(self)

    members = {
        "__init__": start,
        "phase_start": lambda self, phase, parent, steps: tracker.start(phase, parent, steps),
        "step_complete": lambda self, phase, step: tracker.step(phase, step),
        "phase_finish": lambda self, phase: tracker.finish(phase),
    }
    return type("ProgressBridge", (library.IProgressMonitor,), members)()


@contextmanager
def interruptible(cancelled: Event) -> Iterator[None]:
    """In this block Ctrl-C only sets ``cancelled``; it is raised, as ever, when the block has ended.

    Python would raise it between any two bytecodes, and so inside a callback: an exception that unwinds through the
    library's C++ ends the process. On other threads than the main one Python raises no KeyboardInterrupt anyway.
    """
    before = signal.getsignal(signal.SIGINT)
    if current_thread() is not main_thread() or not callable(before):
        yield
        return
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        cancelled.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            before(signal.SIGINT, None)  # raises KeyboardInterrupt, unless the program has its own handler
