"""The open variant behind an engine: counted while it is used, replaced between two requests, freed after the last."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from vggdeploy.engine.loading import OpenVariant
from vggdeploy.errors import IncompatibleError, InputError, UsageError, VggdeployError
from vggdeploy.records import Record
from vggdeploy.runtime.base import Array, Handle
from vggdeploy.system.forks import Birthplace


class Health(Record, frozen=True, kw_only=True):
    """What an engine has done so far, and whether it can go on.

    ``ok``: it is open, and the last request did not fail in the runtime (a bad image is the caller's failure).
    ``digest`` names the bundle; ``answered`` and ``failed`` count requests since `load`, over all ``reloads``.
    """

    ok: bool
    bundle: str
    digest: str
    variant: str
    device: str
    active: int
    answered: int
    failed: int
    last_failure: str
    reloads: int
    seconds_open: float


class Lease:
    """One open variant and how many requests use it. Its session is closed when it was retired and nobody uses it."""

    def __init__(self, opened: OpenVariant) -> None:
        self.opened = opened
        self.users = 0
        self.retired = False


class Holder:
    """What requests are given: the present variant. All methods may be called from any thread."""

    def __init__(self, opened: OpenVariant) -> None:
        self._lock = threading.Lock()
        self._held = Lease(opened)
        self._closed = False
        self._abandoned: deque[Lease] = deque()
        self._birthplace = Birthplace()
        self.opened_at = time.monotonic()
        self.reloads = 0
        self.answered = 0
        self.failed = 0
        self.last_failure = ""

    def __reduce__(self) -> NoReturn:
        """Another process, or a copy, cannot have an open engine: its session and its threads are of this process."""
        raise IncompatibleError(
            "an engine cannot be sent to another process, or copied", "load it in the process that uses it"
        )

    @property
    def present(self) -> OpenVariant:
        return self._held.opened

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def users(self) -> int:
        """Requests under way on the present variant."""
        return self._held.users

    def health(self) -> Health:
        self._take_back()
        with self._lock:
            opened = self._held.opened
            return Health(
                ok=not self._closed and not self.last_failure,
                bundle=opened.bundle.manifest.name,
                digest=opened.bundle.manifest.digest,
                variant=opened.variant.name,
                device=str(opened.device),
                active=self._held.users,
                answered=self.answered,
                failed=self.failed,
                last_failure=self.last_failure,
                reloads=self.reloads,
                seconds_open=round(time.monotonic() - self.opened_at, 3),
            )

    def take(self) -> Lease:
        """The present variant, which stays open until it is given back.

        Raises:
            VggdeployError: it was closed. IncompatibleError: as `check_process`.
        """
        self.check_process()
        self._take_back()
        with self._lock:
            if self._closed:
                name = self._held.opened.variant.name
                raise VggdeployError(f"the engine of {name} is closed", "use it inside its 'with' block")
            self._held.users += 1
            return self._held

    def give(self, held: Lease, error: BaseException | None = None) -> None:
        """Give back what was taken, with the error that came of it, if any."""
        with self._lock:
            held.users -= 1
            if error is None:
                self.answered += 1
                self.last_failure = ""
            elif isinstance(error, Exception) and not isinstance(error, (InputError, UsageError)):
                self.failed += 1
                self.last_failure = str(error)
            last = held.retired and not held.users
        if last:
            _free(held)

    def abandon(self, held: Lease) -> None:
        """Give back what nobody waits for any more. The garbage collector may call this, whatever locks are held then: the
        variant gets it with the next request, reload or end."""
        self._abandoned.append(held)

    def _take_back(self) -> None:
        while True:
            try:
                held = self._abandoned.popleft()
            except IndexError:
                return
            with self._lock:
                held.users -= 1
                last = held.retired and not held.users
            if last:
                _free(held)

    def check_process(self) -> None:
        """Refuse what would wait for ever in a forked child: for a runtime's threads, or for a lock that was held.

        Raises:
            IncompatibleError: it was opened in the process from which this one was forked.
        """
        self._birthplace.check("this engine", again="call vggdeploy.load")

    @contextmanager
    def use(self) -> Iterator[Lease]:
        """`take` and `give` around a block."""
        held = self.take()
        try:
            yield held
        except BaseException as error:
            self.give(held, error)
            raise
        self.give(held)

    def replace(self, opened: OpenVariant) -> None:
        """From now on requests get ``opened``; what they had so far is freed after the last of them.

        Raises:
            VggdeployError: it was closed meanwhile; ``opened`` is then freed.
        """
        self._take_back()
        fresh = Lease(opened)
        with self._lock:
            closed, old = self._closed, self._held
            if not closed:
                self._held = fresh
                self.reloads += 1
                self.last_failure = ""
                old.retired = True
                idle = not old.users
        if closed:
            _free(fresh)
            raise VggdeployError("the engine was closed during its reload", "load the new bundle by itself")
        if idle:
            _free(old)

    def close(self) -> None:
        """No more requests; the variant is freed now, or after the last request that is under way."""
        if not self._birthplace.here:
            return  # its threads live in the parent; to free it here would wait for them
        self._take_back()
        with self._lock:
            first = not self._closed
            self._closed = True
            self._held.retired = True
            idle = not self._held.users
        if first and idle:
            _free(self._held)


class LeasedHandle:
    """A batch under way. Its variant stays open until the answer was taken, or until the handle is gone."""

    def __init__(self, handle: Handle, holder: Holder, held: Lease) -> None:
        self._handle = handle
        self._holder = holder
        self._give_back = weakref.finalize(self, holder.abandon, held)
        self._give_back.atexit = False
        self._held = held

    def result(self) -> dict[str, Array]:
        """Wait for the batch: graph output name → ``float32`` array ``[N, …]``. A second call returns the same.

        Raises:
            VggdeployError: it failed, or its answer holds a NaN or infinity.
            IncompatibleError: this process was forked after the engine was opened.
        """
        self._holder.check_process()
        try:
            answer = self._handle.result()
        except Exception as error:  # not Ctrl-C: the batch is under way still
            self._end(error)
            raise
        self._end()
        return answer

    def _end(self, error: Exception | None = None) -> None:
        if self._give_back.detach():  # once, whichever thread comes first
            self._holder.give(self._held, error)


def _free(held: Lease) -> None:
    held.opened.session.__exit__(None, None, None)
