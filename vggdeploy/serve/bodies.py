"""Request bodies are counted as they arrive: each has a limit, and so have all of them together."""

from __future__ import annotations

from collections.abc import Mapping

from vggdeploy.serve.settings import Settings


class BodyRefused(Exception):  # it is an answer, not a failure
    """A body that is not read (further)."""

    def __init__(self, status: int, cause: str, hint: str) -> None:
        super().__init__(cause)
        self.status = status
        self.cause = cause
        self.hint = hint


class Bodies:
    """What all bodies under way take. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.limit = settings.max_body
        self.budget = settings.body_budget
        self.held = 0

    def account(self, headers: Mapping[str, str]) -> Account:
        length = headers.get("content-length", "")
        return Account(self, int(length) if length.isdecimal() and len(length) < 16 else 0)


class Account:
    """The bytes of one request: as many as it announced, or as have come where it announced fewer or none."""

    def __init__(self, bodies: Bodies, announced: int) -> None:
        self.taken = 0
        self._bodies = bodies
        self._announced = announced
        self._held = 0

    def check_announced(self) -> None:
        """Refuse by its Content-Length, before a byte of it is read.

        Raises:
            BodyRefused: larger than one may be, or than there is room for at present.
        """
        self._hold(self._announced)

    def take(self, size: int) -> None:
        """Count bytes that have arrived.

        Raises:
            BodyRefused: as above.
        """
        self.taken += size
        self._hold(self.taken)

    def _hold(self, size: int) -> None:
        bodies = self._bodies
        if size > bodies.limit:
            raise BodyRefused(
                413, f"the body is larger than {bodies.limit} bytes", "send less, or scale the image down"
            )
        more = size - self._held
        if more <= 0:
            return
        if bodies.held + more > bodies.budget:
            raise BodyRefused(503, "too many bytes are on their way already", "try again a little later")
        bodies.held += more
        self._held = size

    def release(self) -> None:
        self._bodies.held -= self._held
        self._held = 0
