"""Where vggdeploy does not run it says so in a sentence; and what the runtime needs of Linux alone, it can do without.

Neither Windows nor macOS is here: of Windows only the refusal is tested, of macOS that the runtime asks for nothing that its
Python does not have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vggdeploy
from vggdeploy import IncompatibleError

ROOT = Path(vggdeploy.__file__).parents[1]

FOREIGN = {
    "Windows": ("sys.platform = 'win32'", "does not run on Windows itself", "Windows Subsystem for Linux"),
    "no lock": ("sys._is_gil_enabled = lambda: False", "without its global lock", "PYTHON_GIL=1"),
}


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}", *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize("where", FOREIGN)
def test_the_command_says_where_it_does_not_run(where: str) -> None:
    pretend, cause, fix = FOREIGN[where]
    done = python(f"{pretend}\nfrom vggdeploy.__main__ import main\nsys.argv[1:] = ['doctor']\nmain()")
    assert done.returncode == 5
    assert done.stderr.count("\n") == 2
    assert cause in done.stderr.splitlines()[0]
    assert fix in done.stderr.splitlines()[1]


@pytest.mark.parametrize(
    "use",
    [
        lambda: vggdeploy.load,
        lambda: vggdeploy.Bundle,
        lambda: vggdeploy.AsyncEngine,
        lambda: vggdeploy.verify("bundle"),
        lambda: vggdeploy.train("checkpoint"),
    ],
)
def test_so_does_the_library_and_its_errors_can_be_caught(
    use: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(vggdeploy.VggdeployError) as caught:
        use()
    assert caught.type is IncompatibleError
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    with pytest.raises(IncompatibleError, match="has not been tried"):
        use()


# What Python has on Linux and not on macOS (its documentation: availability), as far as it can be taken away.
LIKE_MACOS = """
import fcntl, os, signal, select
for name in ("sched_getaffinity", "sched_setaffinity", "memfd_create", "MFD_CLOEXEC", "MFD_ALLOW_SEALING", "O_PATH", "eventfd",
             "pidfd_open", "splice", "copy_file_range", "posix_fallocate", "posix_fadvise", "getrandom", "setresuid"):
    if hasattr(os, name):
        delattr(os, name)
for name in [n for n in dir(fcntl) if n.startswith("F_SEAL") or n == "F_ADD_SEALS"]:
    delattr(fcntl, name)
del select.epoll
sys.platform = "darwin"
"""
CLASSIFY = """
import json
import vggdeploy
with vggdeploy.load(sys.argv[1], variant="onnx-fp32", verify="always") as engine:
    print(json.dumps([engine.classify(sys.argv[2]), engine.embed(sys.argv[2], output="logits").tolist()]))
"""


def test_the_runtime_needs_nothing_that_macos_has_not(bundle_dir: Path, digit_png: Path) -> None:
    here, there = (python(code + CLASSIFY, bundle_dir, digit_png) for code in ("", LIKE_MACOS))
    assert here.returncode == there.returncode == 0, there.stderr
    assert json.loads(there.stdout) == json.loads(here.stdout)


def test_a_copy_that_is_not_sealed_is_checked_and_removed_all_the_same(tmp_path: Path) -> None:
    code = """
import os, tempfile
tempfile.tempdir = sys.argv[1]
from pathlib import Path
from vggdeploy.errors import IntegrityError
from vggdeploy.system.sealed import HashedFile
file = Path(sys.argv[1], "file")
file.write_bytes(b"bytes")
with HashedFile.of(file).open() as copy:
    assert copy.path.read_bytes() == b"bytes" == bytes(copy.map()) == copy.head(5)
    assert copy.path.parent.stat().st_mode & 0o777 == 0o700
    file.write_bytes(b"others")
    assert copy.path.read_bytes() == b"bytes"
known = HashedFile(file, "0" * 64)
try:
    with known.open():
        raise SystemExit("opened")
except IntegrityError:
    pass
assert os.listdir(sys.argv[1]) == ["file"]
"""
    done = python(LIKE_MACOS + code, tmp_path)
    assert done.returncode == 0, done.stderr
