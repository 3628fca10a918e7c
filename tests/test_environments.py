"""Every verb where the machine is not as one hopes: a full disk, nothing to write to, few descriptors, odd names, no home.

Each environment runs all verbs, in forked children of one process. Mounts need a user namespace (`unshare -rm`).
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
SCRIPT = [sys.executable, str(TESTS / "attacks" / "environment.py")]
WITHIN_BUNDLE = {"optimize-int8", "optimize-openvino", "build", "verify-record", "bench-record", "sign"}
READERS = {"predict", "inspect", "verify", "bench", "summary"}
# Each kind of write once, and what only reads: for environments that are alike for the others.
FEW = (
    "train-new",
    "export-new",
    "optimize-openvino",
    "verify-record",
    "embed-npy",
    "embed-parquet",
    "package-slim",
    *READERS,
)

pytestmark = pytest.mark.late


@functools.cache
def may_mount() -> bool:
    return subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], check=False).returncode == 0


needs_mounts = pytest.mark.skipif(not may_mount(), reason="mounts are not permitted: unshare -rm")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a bundle, images, a result and a key. Treat it as read-only."""
    root = tmp_path_factory.mktemp("given")
    command(["prepare", str(root)], prefix="", env={})
    return root / "given"


def command(arguments: Sequence[str], *, prefix: str, env: dict[str, str | None]) -> str:
    """The script in a shell that first does ``prefix``."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), **env}
    line = [*(["unshare", "-rm"] if "mount " in prefix else []), "bash", "-ec", f'{prefix}\nexec "$@"', "bash"]
    done = subprocess.run(
        [*line, *SCRIPT, *arguments], capture_output=True, text=True, check=False, timeout=1500,
        env={name: value for name, value in variables.items() if value is not None},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def verbs_in(
    given: Path, home: Path, *verbs: str, prefix: str = "", env: dict[str, str | None] | None = None
) -> dict[str, Any]:
    """What became of the verbs (default: of all): code, said, new."""
    said = command(["run", str(given), str(home), *verbs], prefix=prefix, env=env or {})
    answers: dict[str, Any] = json.loads(said.splitlines()[-1])
    for verb, answer in answers.items():
        assert answer["code"] != "hangs", verb
        assert "Traceback" not in answer["said"], (verb, answer["said"][-2000:])
        assert "this is a bug" not in answer["said"], (verb, answer["said"][-2000:])
    return answers


def all_succeed(answers: dict[str, Any]) -> None:
    assert {verb: answer["said"][-300:] for verb, answer in answers.items() if answer["code"] not in (0, 4)} == {}


def drafts(answers: dict[str, Any]) -> list[str]:
    """What was left over: temporary files, and names that begin with a dot. Libraries keep some of their own."""
    names = [name for answer in answers.values() for name in answer["new"]]
    ours = [name for name in names if not name.startswith(("tmp/.ses", "tmp/torchinductor_"))]
    return [n for n in ours if n.startswith("tmp/") or re.search(r"/\.[^/]*(tmp|old|try)-", n)]


def test_paths_with_spaces_quotes_and_other_scripts(given: Path, tmp_path: Path) -> None:
    answers = verbs_in(given, tmp_path / "ein Ort 模型 ‘é’ %20 {}")
    all_succeed(answers)
    assert not drafts(answers)


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_the_c_locale_with_labels_and_paths_of_other_scripts(given: Path, tmp_path: Path, utf8: str) -> None:
    env = {"LC_ALL": "C", "LANG": None, "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": "0"}
    own = relabelled(given, tmp_path)
    verbs = (
        "export",
        "verify-record",
        "embed-npy",
        "embed-parquet",
        "evaluate",
        "report",
        "package-triton",
        "predict",
        "inspect",
    )
    answers = verbs_in(own, tmp_path / ("模型" if utf8 == "1" else "home"), *verbs, env=env)
    all_succeed(answers)


def relabelled(given: Path, tmp_path: Path) -> Path:
    """The same, with labels that ASCII has no letters for, and an image of such a name."""
    own = tmp_path / "relabelled"
    shutil.copytree(given, own)
    about = own / "checkpoint" / "checkpoint.json"
    about.write_text(about.read_text().replace('"3"', '"三 drei é"'), encoding="utf-8")
    (own / "images" / "00.png").rename(own / "images" / "零.png")
    return own


def test_no_home(given: Path, tmp_path: Path) -> None:
    """A container's user that no passwd file knows, and no $HOME: there is no cache, and all goes on."""
    prefix = 'exec unshare --user --map-user=54321 -- "$@"' if os.geteuid() == 0 else ""
    answers = verbs_in(given, tmp_path / "home", *FEW, prefix=prefix, env={"ENVIRONMENT_UNSET": "HOME,VGGDEPLOY_CACHE"})
    all_succeed(answers)


def test_64_descriptors(given: Path, tmp_path: Path) -> None:
    answers = verbs_in(given, tmp_path / "home", prefix="ulimit -n 64")
    all_succeed(answers)


def test_umask_077_is_obeyed_but_for_what_an_image_s_user_reads(given: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    answers = verbs_in(
        given, home, "train-new", "embed-npy", "report", "package-slim", "package-oci", prefix="umask 077"
    )
    all_succeed(answers)
    work = home / "work"
    for path in (
        work / "new",
        work / "vectors.npy",
        work / "report.html",
        work / "slim" / "manifest.json",
        work / "oci",
    ):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    for path in (work / "oci" / "bundle").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044, path


@needs_mounts
def test_a_full_disk_ends_every_verb_with_one_line_and_leaves_nothing(given: Path, tmp_path: Path) -> None:
    home = tmp_path / "disk" / "home"
    home.parent.mkdir()
    env = {"ENVIRONMENT_FILL": str(home.parent)}
    answers = verbs_in(given, home, prefix=f"mount -t tmpfs -o size=64m none '{home.parent}'", env=env)
    for verb, answer in answers.items():
        if verb in READERS:
            assert answer["code"] in (0, 4), (verb, answer["said"][-500:])
        else:
            assert answer["code"] not in (0, 4), verb
            assert "fix: " in answer["said"], verb
            assert re.search(r"space|writ", answer["said"]), (verb, answer["said"][-500:])
    assert not drafts(answers)


@needs_mounts
def test_a_read_only_bundle_and_home(given: Path, tmp_path: Path) -> None:
    """What only reads goes on; what would write to the bundle says why not; what writes elsewhere does."""
    home = tmp_path / "home"
    env = {"ENVIRONMENT_READ_ONLY": "work/bundle,user,cache"}
    answers = verbs_in(given, home, *FEW, *WITHIN_BUNDLE, "export", prefix="mount -t tmpfs none /mnt", env=env)
    for verb in (*WITHIN_BUNDLE, "export"):
        answer = answers.pop(verb)
        assert answer["code"] not in (0, 4), verb
        assert re.search(r"read-only|mount point", answer["said"], re.IGNORECASE), (verb, answer["said"][-500:])
    all_succeed(answers)
    assert not drafts(answers)


@needs_mounts
@pytest.mark.parametrize("options", ["size=64k", "ro,size=4k"])
def test_no_shared_memory(given: Path, tmp_path: Path, options: str) -> None:
    answers = verbs_in(
        given, tmp_path / "home", *FEW, "bench-record", prefix=f"mount -t tmpfs -o {options} none /dev/shm"
    )
    all_succeed(answers)


def test_a_server_of_64_descriptors_answers_again_when_a_hundred_callers_have_gone(given: Path, tmp_path: Path) -> None:
    line = [
        "bash",
        "-ec",
        'ulimit -n 64; exec "$@"',
        "bash",
        sys.executable,
        "-m",
        "vggdeploy",
        "serve",
        given / "bundle",
    ]
    log = tmp_path / "log"
    with log.open("wb") as file:
        server = subprocess.Popen([*line, "--port", "0", "--threads", "1"], stdout=file, stderr=file)
    try:
        address = _address(server, log)
        callers = [socket.create_connection(address, timeout=10) for _ in range(100)]
        for caller in callers:
            caller.close()
        assert _ready(address) == 200
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
    assert "Traceback" not in log.read_text()


def _ready(address: tuple[str, int]) -> int:
    """The status of a server; until it has seen that the others left, it resets connections that it has no descriptor for."""
    until = time.monotonic() + 60
    while True:
        with closing(http.client.HTTPConnection(*address, timeout=60)) as connection:
            try:
                connection.request("GET", "/v2/health/ready")
                return connection.getresponse().status
            except ConnectionError:
                assert time.monotonic() < until
                time.sleep(0.1)


def _address(server: subprocess.Popen[bytes], log: Path) -> tuple[str, int]:
    until = time.monotonic() + 180
    while '"ready"' not in log.read_text():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    found = re.search(r"http://([0-9.]+):([0-9]+)", log.read_text())
    assert found is not None
    return found[1], int(found[2])
