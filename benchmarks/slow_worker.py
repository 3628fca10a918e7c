"""A worker of `bench` that is slower by a known share for one entry: what `harness_power.py` plants.

The slowdown is a spin inside the timed call, as long as that share of the call itself, so it scales with whatever the machine
does. It is asked for in the environment: ``VGGDEPLOY_PLANTED=NAME:SHARE``.
"""

from __future__ import annotations

import os
import time
from typing import Any

from vggdeploy.bench import worker


def main() -> None:
    name, _, share = os.environ["VGGDEPLOY_PLANTED"].rpartition(":")

    class Slowed:
        """A session whose calls take ``share`` longer."""

        def __init__(self, session: Any) -> None:
            self._session = session

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self._session, attribute)

        def run(self, feeds: Any) -> Any:
            start = time.perf_counter()
            answer = self._session.run(feeds)
            end = time.perf_counter()
            until = end + float(share) * (end - start)
            while time.perf_counter() < until:
                pass
            return answer

    open_of = worker.Desk._open

    def open_slowed(desk: worker.Desk, request: worker.OpenRequest) -> worker.OpenReply:
        reply = open_of(desk, request)
        if request.name.startswith(f"{name}:"):
            one = desk._opened[request.name]
            desk._opened[request.name] = worker._Opening(
                one.bundle, one.variant, one.device, Slowed(one.session), one.batches
            )
        return reply

    worker.Desk._open = open_slowed  # type: ignore[method-assign]
    worker.main()


if __name__ == "__main__":
    main()
