"""A server that is measured: ``vggdeploy serve`` on a free port, for as long as a block lasts."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from main_job import make_vgg16
from measuring import run_process


@dataclass(frozen=True)
class Serving:
    """A server that is ready: its process, its port, and the file with its log."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path


@contextmanager
def serving(bundle: Path, *options: object, workers: int = 1) -> Iterator[Serving]:
    """The server of a bundle's ``onnx-fp32``, once all of its workers are ready; it is ended behind the block."""
    command = [
        sys.executable,
        "-m",
        "vggdeploy",
        "serve",
        bundle,
        "--variant",
        "onnx-fp32",
        "--port",
        "0",
        "--drain",
        "0",
    ]
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen([str(part) for part in (*command, *options)], stderr=stderr)
        try:
            while (text := log.read_text()).count('"message":"ready"') < workers:
                assert process.poll() is None, text
                time.sleep(0.05)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", text)
            assert found is not None
            yield Serving(process, int(found[1]), log)
        finally:
            process.terminate()
            process.wait(60)


def two_bundles(home: Path) -> tuple[Path, Path]:
    """The demo's bundle, of the digits, and that of a VGG-16 with random weights; the demo's images lie in ``demo/images``."""
    cli = [sys.executable, "-m", "vggdeploy"]
    run_process([*cli, "demo", "-o", home / "demo"])
    make_vgg16(home / "vgg16")
    run_process([*cli, "export", home / "vgg16", "-o", home / "bundle"])
    return home / "demo" / "bundle", home / "bundle"
