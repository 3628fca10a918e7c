"""LoadGen runs in a process of its own: it ends when we end it, and its errors are one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attacks.processes import children

from vggdeploy.bench.candidates import Entry
from vggdeploy.bench.loadgen import run as bench_loads
from vggdeploy.bench.loadgen.run import run_loads
from vggdeploy.bench.loadgen.scenarios import Load
from vggdeploy.bundle import Bundle
from vggdeploy.errors import VggdeployError
from vggdeploy.types import Device


def child_of(pid: int) -> int | None:
    return next(iter(children(pid)), None)


def wait_for_loadgen(pid: int) -> int:
    """The child of a process, once LoadGen's library is loaded in it."""
    for _ in range(600):
        child = child_of(pid)
        if child and "mlperf_loadgen" in Path(f"/proc/{child}/maps").read_text():
            return child
        time.sleep(0.05)
    raise AssertionError("LoadGen was not started")


@pytest.mark.parametrize("scenario", ["single_stream", "server"])
@pytest.mark.alone
def test_ctrl_c_ends_a_load_at_once_and_leaves_nothing(bundle_dir: Path, tmp_path: Path, scenario: str) -> None:
    line = [sys.executable, "-m", "vggdeploy", "bench", str(bundle_dir), "--variant", "onnx-fp32", "--duration", "60"]
    server = ["--target-qps", "100", "--latency-bound", "50"] if scenario == "server" else []
    with subprocess.Popen(
        [*line, "--scenario", scenario, *server],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:  # fmt: skip
        child = wait_for_loadgen(process.pid)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)  # of a load of 60 s
    assert process.returncode == 130
    assert not Path(f"/proc/{child}").exists()
    assert "Traceback" not in out + err
    assert "interrupted" in err


def test_a_killed_loadgen_is_one_clear_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = bench_loads.Worker

    class Doomed(worker):
        def ask(self, request, answer):
            if isinstance(request, bench_loads.LoadRequest):
                os.kill(self.pid, signal.SIGKILL)
            return super().ask(request, answer)

    monkeypatch.setattr(bench_loads, "Worker", Doomed)
    entry = Entry(bundle, bundle.manifest.variant("onnx-fp32"), Device(), "onnx-fp32")
    with pytest.raises(VggdeployError, match="SIGKILL"):
        run_loads([entry], bundle.golden()[0]["image"], [Load("offline", seconds=0.2)])


def test_rows_come_by_load_and_the_order_of_the_variants(bundle: Bundle) -> None:
    entries = [Entry(bundle, bundle.manifest.variant(n), Device(), n) for n in ("onnx-fp32", "onnx-fp16")]
    loads = [Load("single_stream", seconds=0.1), Load("server", seconds=0.2, target_qps=100, latency_bound_ms=500)]
    rows = run_loads(entries, bundle.golden()[0]["image"], loads, threads=1)
    assert [(r.scenario, r.variant) for r in rows] == [
        (load.scenario, entry.name) for load in loads for entry in entries
    ]
    assert all(r.answers is not None for r in rows)
