"""The child of a target, from its start until every variant is finished, or until it dies or takes too long."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time

from vggdeploy.system.drafts import temporary_directory
from vggdeploy.verify.fleet.exchange import Exchange
from vggdeploy.verify.fleet.target import Target, last_line

_GOODBYE_SECONDS = 5.0
_LOOK_SECONDS = 0.25


def run_child(target: Target, exchange: Exchange, variants: int, seconds: float) -> str:
    """Run the target's child; why it did not finish all variants, or "".

    Args:
        seconds: that one variant may take.
    """
    # In a directory of its own: a core file, or what a browser leaves, goes with it.
    with temporary_directory("vggdeploy-fleet-") as home:
        args, env = target.command(exchange.address, home)
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                args, env=env, cwd=home, stdin=subprocess.DEVNULL, stdout=said, stderr=said, process_group=0
            )
            try:
                trouble = _watch(process, exchange, variants, seconds)
            finally:
                _end(process)
            said.seek(0)
            last = last_line(said.read()) if trouble and not exchange.failed else ""
        return f"{trouble}: {last}" if last else trouble


def _watch(process: subprocess.Popen[bytes], exchange: Exchange, variants: int, seconds: float) -> str:
    finished, until = -1, 0.0
    while True:
        if exchange.failed:
            return exchange.failed
        if len(exchange.finished) == variants:
            return ""
        if len(exchange.finished) > finished:
            finished, until = len(exchange.finished), time.monotonic() + seconds
        if time.monotonic() > until:
            return f"it did not answer within {seconds:g} s (--timeout)"
        code = process.poll()
        if code is not None and not exchange.changed.is_set():
            return f"the process {_how(code)}"
        if exchange.changed.wait(0 if code is not None else _LOOK_SECONDS):
            exchange.changed.clear()


def _how(code: int) -> str:
    """In words, how a process ended. qemu ends by the signal that the emulated program got."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Politely, then not; with all that it started."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GOODBYE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
