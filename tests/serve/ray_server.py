"""``vggdeploy serve --ray`` as a process of its own, on a cluster of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def ray_server(bundle: Path, *options: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """URL and process of the command, which is killed behind the block if it has not ended by then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vggdeploy", "serve", bundle, "--variant", "onnx-fp32", "--ray", "local", "--port", "0",
         *map(str, options)],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")))  # type: ignore[union-attr]
    reader.start()
    try:
        end = time.monotonic() + 180
        while not (found := re.search(r"http://\S+", "".join(lines))):
            assert process.poll() is None, lines
            assert time.monotonic() < end, lines
            time.sleep(0.1)
        yield found[0], process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        reader.join(30)
        process.stderr.close()
