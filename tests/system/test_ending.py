"""SIGTERM and Ctrl-C end a command also while a library computes, and nothing is left of it.

No test waits for a time: what is ended would compute for hours.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from attacks.processes import alive
from onnx import TensorProto, helper, numpy_helper

TESTS = Path(__file__).parents[1]

_START = """
import os, signal, subprocess, sys, time
from pathlib import Path
from attacks.endless import endless
from vggdeploy.system import ending
from vggdeploy.system.drafts import PLACING, temporary_directory
from vggdeploy.system.files import FileDraft, atomic_directory
home, ready = Path(sys.argv[1]), Path(sys.argv[2])
ending.watch()
"""


def started(program: str, tmp_path: Path, *arguments: object) -> tuple[subprocess.Popen[str], Path]:
    """A process that has begun its endless work in an empty directory, and that directory."""
    home, ready = tmp_path / "home", tmp_path / "ready"
    home.mkdir()
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    process = subprocess.Popen(
        [sys.executable, "-c", _START + program, str(home), str(ready), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(home)},
    )  # fmt: skip
    end = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.1)  # from the mark into the library
    return process, home


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it said; here, at the latest, it is killed."""
    try:
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, said


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_computing_library_is_ended_with_its_processes_and_drafts(tmp_path: Path, sent: int, code: int) -> None:
    program = """
child = subprocess.Popen([sys.executable, "-c", "import subprocess as s; p = s.Popen(['sleep', '900']); "
                          "print(p.pid, flush=True); p.wait()"], stdout=subprocess.PIPE, process_group=0)
(home.parent / "pids").write_text(f"{child.pid} {child.stdout.readline().decode()}")
with temporary_directory("vggdeploy-"), atomic_directory(home / "bundle", marker="m", overwrite=True) as draft:
    (draft / "part").mkdir()
    (draft / "part" / "weights").write_bytes(b"half")
    FileDraft(home / "report").file.write(b"half")
    endless(ready)
"""
    process, home = started(program, tmp_path)
    children = list(map(int, (tmp_path / "pids").read_text().split()))
    assert all(map(alive, children))
    assert len(list(home.iterdir())) == 3
    process.send_signal(sent)
    found, said = ended(process)
    assert found == code
    assert list(home.iterdir()) == []
    assert not any(map(alive, children))
    assert said == ("error: interrupted\n  fix: nothing half-written was left behind\n" if code == 130 else "")


def endless_graph() -> bytes:
    """An ONNX file of one loop of 2⁶² turns."""
    turn = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "turn",
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["turns", "", "x"], ["y"], body=turn)],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array(2**62, np.int64), "turns")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_onnx_runtime_is_ended_in_a_graph_that_never_ends(tmp_path: Path, sent: int) -> None:
    program = """
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[3], providers=["CPUExecutionProvider"])
ready.touch()
session.run(None, {"x": numpy.ones(1, numpy.float32)})
"""
    (tmp_path / "endless.onnx").write_bytes(endless_graph())
    process, _ = started(program, tmp_path, tmp_path / "endless.onnx")
    process.send_signal(sent)
    assert ended(process)[0] == 128 + sent


def test_what_python_can_end_itself_it_ends_in_its_own_order(tmp_path: Path) -> None:
    program = """
try:
    ready.touch()
    time.sleep(900)
finally:
    (home / "ended").write_text("in order")
"""
    process, home = started(program, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    assert (home / "ended").read_text() == "in order"


def test_a_clean_up_that_hangs_does_not_hold_the_end(tmp_path: Path) -> None:
    program = """
try:
    ready.touch()
    time.sleep(900)
finally:
    endless()
"""
    process, _ = started(program, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143


def test_where_the_first_ctrl_c_has_time_the_second_ends(tmp_path: Path) -> None:
    program = """
with ending.patience(interrupt=float("inf")):
    while True:
        try:
            ready.touch()
            time.sleep(900)
        except KeyboardInterrupt:
            (home / "first").touch()
            endless()
"""
    process, home = started(program, tmp_path)
    process.send_signal(signal.SIGINT)
    while not (home / "first").exists():
        time.sleep(0.02)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)  # more than the grace
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130


def test_the_signal_of_a_forked_child_is_not_its_parents(tmp_path: Path) -> None:
    program = """
import warnings
warnings.simplefilter("ignore")
child = os.fork()
if child == 0:
    time.sleep(900)
time.sleep(0.2)
os.kill(child, signal.SIGTERM)
(home / "child").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
ready.touch()
time.sleep(2)
print("goes on", flush=True)
"""
    process, home = started(program, tmp_path)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == "goes on\n"
    assert (home / "child").read_text() == str(-signal.SIGTERM)


def test_a_draft_that_takes_its_place_is_not_removed_in_parts(tmp_path: Path) -> None:
    program = """
with atomic_directory(home / "bundle", marker="m", overwrite=True) as draft:
    (draft / "weights").write_bytes(b"whole")
    with PLACING:
        endless(ready)
"""
    process, home = started(program, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    [draft] = home.iterdir()  # which the next writer takes away
    assert (draft / "weights").read_bytes() == b"whole"
