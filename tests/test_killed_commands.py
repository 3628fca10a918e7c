"""Whole commands, killed with SIGKILL at their writes: what stands there is the old or the new, whole, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.system.optional import installed

# Counts what changes the file system below a directory, and kills its process at one of them. `open` tells of its flags.
_KILLER = """
import os, signal, sys
home, fatal = os.path.realpath(sys.argv[1]), int(sys.argv[2])
seen = 0
def watch(event, arguments):
    global seen
    if event not in ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
        return
    if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        return
    if not any(isinstance(a, (str, bytes)) and os.path.realpath(os.fsdecode(a)).startswith(home) for a in arguments):
        return
    seen += 1
    if seen == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
from vggdeploy.cli.app import run
sys.addaudithook(watch)
code = run(sys.argv[3:])
print("writes", seen)
sys.exit(code)
"""


def killed(home: Path, fatal: int, *arguments: object) -> tuple[int, int]:
    """Run a command that dies at its ``fatal``-th write below ``home``; its exit code, and how many writes it had."""
    command = [sys.executable, "-c", _KILLER, str(home), str(fatal), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    writes = int(done.stdout.rsplit("writes ", 1)[1]) if "writes " in done.stdout else 0
    return done.returncode, writes


def sample(writes: int, count: int) -> list[int]:
    return sorted({1 + round(n * (writes - 1) / (count - 1)) for n in range(count)})


COMMANDS = {
    "export": ["export", "{checkpoint}", "-o", "{home}/bundle", "--force", "--formats", "onnx-fp32", "--samples", "50"],
    "optimise": ["optimize", "{home}/bundle", "--step", "openvino-fp32"],
    "build": ["build", "{home}/bundle", "--target", "sm89", "--no-cache", "--opt-level", "0"],
}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param("export", 4, marks=pytest.mark.late),
        pytest.param("export", 25, marks=pytest.mark.slow),
        pytest.param("optimise", 20, marks=pytest.mark.slow),
        pytest.param("build", 12, marks=pytest.mark.slow),
    ],
)
def test_a_command_killed_at_its_writes_leaves_the_old_or_the_new_bundle(
    name: str, count: int, checkpoint: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    if name == "build" and not installed("tensorrt_rtx"):
        pytest.skip("pip install 'vggdeploy[rtx]'")
    home = tmp_path / "home"

    def fresh() -> list[str]:
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(bundle_dir, home / "bundle")
        return [part.format(checkpoint=checkpoint, home=home) for part in COMMANDS[name]]

    code, writes = killed(home, 0, *fresh())
    assert code == 0
    assert writes >= 4
    old = Bundle.open(bundle_dir).manifest.digest
    for fatal in sample(writes, count):
        command = fresh()
        code, _ = killed(home, fatal, *command)
        assert code == -signal.SIGKILL, fatal
        found = Bundle.open(home / "bundle")  # every hash is checked
        if found.manifest.digest != old:
            assert {v.name for v in found.manifest.variants} != {
                v.name for v in Bundle.open(bundle_dir).manifest.variants
            }
        # What the dead one left behind is gone with the next run of the same command.
        assert run(command) == 0, fatal
        assert [p.name for p in home.iterdir()] == ["bundle"], fatal
        Bundle.open(home / "bundle")


@pytest.mark.parametrize(
    ("kills", "verbs"),
    [
        pytest.param(6, ["embed-npy", "package-slim", "sign", "verify-record"], marks=pytest.mark.slow),
        pytest.param(1, ["reload-1", "reload-2"], marks=pytest.mark.slow),
        pytest.param(8, [], marks=pytest.mark.slow),  # all
    ],
)
def test_a_verb_killed_at_random_moments_leaves_nothing_torn_and_the_next_run_nothing_over(
    kills: int, verbs: list[str], tmp_path: Path
) -> None:
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(tests / "attacks" / "killed_verbs.py"), str(tmp_path), str(kills), *verbs],
        capture_output=True, text=True, check=False, timeout=1500,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    counts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(counts) == len(verbs) or not verbs
    for found in counts:
        assert (found["torn"], found["leftovers"], found["processes"], found["failed"]) == ([], {}, 0, []), found
        assert found["kills"] == kills
