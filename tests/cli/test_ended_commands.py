"""Whole commands that are ended by a signal while a library computes and Python gets no turn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

# What a library does is replaced by work of hours that ends for nobody.
_PROGRAM = """
import importlib, os, sys
from pathlib import Path
from attacks.endless import endless
from vggdeploy.cli.app import main
module, _, name = sys.argv[1].partition(":")
place = importlib.import_module(module)
*parts, name = name.split(".")
for part in parts:
    place = getattr(place, part)
setattr(place, name, lambda *_, **__: endless(Path(sys.argv[2])))
main(sys.argv[3:])
"""


def stuck(tmp_path: Path, call: str, *arguments: object, wait: bool = True) -> subprocess.Popen[str]:
    """A command that hangs in ``call`` (``module:name``) for hours."""
    ready = tmp_path / "ready"
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, call, str(ready), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
    )  # fmt: skip
    end = time.monotonic() + 120
    while wait and not ready.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.1)  # from the mark into the library
    return process


def left_of(session: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = stat.read_text(errors="replace").rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def ended(process: subprocess.Popen[str], sent: int, seconds: float = 30) -> tuple[int, str, str]:
    """Send the signal; the exit code, and what was said. No process is left of it."""
    process.send_signal(sent)
    try:
        out, said = process.communicate(timeout=seconds)
        assert left_of(process.pid) == []
    finally:
        for pid in left_of(process.pid):
            os.kill(pid, signal.SIGKILL)
    return process.returncode, out, said


RUN = "onnxruntime:InferenceSession.run"
ENDS = [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "error: interrupted\n")]


@pytest.mark.parametrize(("sent", "code", "line"), ENDS)
@pytest.mark.parametrize("verb", ["predict", "verify", "embed"])
def test_a_verb_ends_while_the_library_computes(
    verb: str, sent: int, code: int, line: str, bundle_dir: Path, digit_png: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    arguments = {
        "predict": ["predict", bundle_dir, digit_png, "--variant", "onnx-fp32", "--json"],
        "verify": ["verify", bundle_dir, "--variant", "onnx-fp32", "--json"],
        "embed": ["embed", bundle_dir, digit_png, "--variant", "onnx-fp32", "--output", "logits", "-o", out / "v.npy"],
    }[verb]
    found, said_out, said = ended(stuck(tmp_path, RUN, *arguments), sent)
    assert found == code
    assert said_out == ""
    assert said.find(line) >= 0
    assert "Traceback" not in said
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(("sent", "code", "line"), ENDS)
def test_an_export_that_hangs_leaves_the_old_bundle_and_no_draft(
    sent: int, code: int, line: str, checkpoint: Path, own_bundle: Path, tmp_path: Path
) -> None:
    before = (own_bundle / "manifest.json").read_bytes()
    home = own_bundle.parent
    marks = tmp_path / "marks"
    marks.mkdir()
    process = stuck(marks, "torch.onnx:export", "export", checkpoint, "-o", own_bundle, "--force")
    assert len(list(home.iterdir())) >= 3  # the bundle, the marks, a draft
    found, _, said = ended(process, sent)
    assert found == code
    assert said.find(line) >= 0
    assert sorted(p.name for p in home.iterdir()) == ["bundle", "marks"]
    assert (own_bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_server_that_hangs_at_its_start_ends(sent: int, code: int, bundle_dir: Path, tmp_path: Path) -> None:
    process = stuck(tmp_path, RUN, "serve", bundle_dir, "--variant", "onnx-fp32", "--port", "0")
    assert ended(process, sent)[0] == code


@pytest.mark.late
def test_a_server_ends_when_a_request_computes_for_ever(bundle_dir: Path, digit_png: Path, tmp_path: Path) -> None:
    import httpx

    # The library hangs from the first request on.
    process = stuck(
        tmp_path, "vggdeploy.engine.async_engine:run_batch", "serve", bundle_dir, "--variant", "onnx-fp32",
        "--port", "0", "--timeout", "1", "--drain", "0", wait=False,
    )  # fmt: skip
    assert process.stderr is not None
    url = next(line for line in process.stderr if "http://" in line).split("http://")[1].split()[0]
    httpx.post(f"http://{url}/classify", content=digit_png.read_bytes(), timeout=20)
    assert ended(process, signal.SIGTERM, 90)[0] in (0, 143)
