"""uvicorn's HTTP protocol with a limit on how long a client may take to send a request's headers.

uvicorn waits for ever for the first byte and the last header: a few hundred idle connections (slowloris) would then
take every place there is.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_TIMEOUT = 10.0  # seconds


class TimedProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]  # which of two it is, is known at run time
    """Closes a connection that has no request under way and does not begin one in time."""

    cycle: Any
    transport: Any
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._under_way:
            self._settle()
        elif self._patience is None:  # the first bytes of a next request: its headers have the same time
            self._wait()

    def connection_lost(self, error: Exception | None) -> None:
        self._settle()
        super().connection_lost(error)

    @property
    def _under_way(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._patience = asyncio.get_running_loop().call_later(HEADER_TIMEOUT, self._give_up)

    def _settle(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if not self._under_way and not self.transport.is_closing():
            self.transport.close()
