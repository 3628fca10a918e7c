"""What does not live on in a forked child: the threads of a library, and so whatever waits for them."""

from __future__ import annotations

import os

from vggdeploy.errors import IncompatibleError

SPAWN = "multiprocessing.get_context('spawn')"


class Birthplace:
    """The process in which something with threads of its own was made. A look at it takes less than 1 µs."""

    def __init__(self) -> None:
        self._process = os.getpid()

    @property
    def here(self) -> bool:
        return os.getpid() == self._process

    def check(self, what: str, *, again: str) -> None:
        """Refuse in a child what would wait for threads that only its parent has.

        Raises:
            IncompatibleError: this process was forked from the one of ``what``.
        """
        if not self.here:
            raise IncompatibleError(
                f"{what} was opened before this process was forked, and its threads are not here",
                f"{again} after the fork, or start the process with spawn: {SPAWN}",
            )


class SharedThreads:
    """The threads that all sessions of a library share: in a child of a process that had them, the library waits for ever.

    Args:
        remedy: what else helps than to spawn.
    """

    def __init__(self, library: str, *, remedy: str) -> None:
        self._library = library
        self._remedy = remedy
        self._made = self._lost = False
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lost = self._made

    def take(self) -> None:
        """They are about to be used, for the first time or again.

        Raises:
            IncompatibleError: a process above this one has them.
        """
        if self._lost:
            raise IncompatibleError(
                f"{self._library} computed with threads before this process was forked, and would wait for them for ever",
                f"{self._remedy}, or start the process with spawn: {SPAWN}",
            )
        self._made = True
