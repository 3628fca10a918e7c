"""The processes that measure: one per backend, none left behind, and an end in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from attacks.processes import alive, children

from vggdeploy.bench.candidates import Entry
from vggdeploy.bench.crew import Crew
from vggdeploy.bundle import Bundle
from vggdeploy.errors import IncompatibleError, InputError, IntegrityError, VggdeployError
from vggdeploy.types import Device

pytestmark = pytest.mark.late


def entry(bundle: Bundle, variant: str, device: str = "cpu") -> Entry:
    return Entry(bundle, bundle.manifest.variant(variant), Device.parse(device), variant)


@pytest.fixture
def crew(bundle: Bundle) -> Iterator[Crew]:
    before = set(children(os.getpid()))
    with Crew(bundle.golden()[0]["image"], batches=(1, 2), threads=1) as made:
        yield made
    assert set(children(os.getpid())) <= before


def test_an_entry_may_have_threads_of_its_own(crew: Crew, bundle: Bundle) -> None:
    plain = entry(bundle, "onnx-fp32")
    own = replace(plain, name="two", threads=2)
    assert [crew.open(one).threads for one in (plain, own)] == [1, 2]


def test_a_torch_free_backend_is_measured_without_torch_and_on_the_threads_asked_for(
    crew: Crew, bundle: Bundle
) -> None:
    one = entry(bundle, "onnx-fp32")
    opened, fresh = crew.open_fresh(one)
    crew.check(one)
    turned = crew.turn(one, 2, 0.05)
    finished = crew.finish(one, 2, 0.05)
    [pid] = [worker.pid for worker in crew._workers.values()]
    assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
    assert opened.threads == 1
    assert fresh.peak_rss_bytes == opened.peak_rss
    assert 0 < turned.cpu_seconds < 5
    assert finished.wrong == ()
    assert finished.host.queue_ms is None
    assert min(finished.host.preprocess_ms, finished.host.run_ms, finished.host.postprocess_ms) > 0


def test_variants_of_one_backend_share_a_process_and_each_has_a_fresh_start_of_its_own(
    crew: Crew, bundle: Bundle
) -> None:
    starts = [crew.open_fresh(entry(bundle, name))[1] for name in ("onnx-fp32", "onnx-fp16")]
    assert len(crew._workers) == 1
    for fresh in starts:
        assert fresh.cold_start_ms > fresh.load_ms > 0
    assert abs(starts[0].peak_rss_bytes - starts[1].peak_rss_bytes) < 50e6  # neither holds the other's


def test_a_killed_worker_is_one_clear_error(crew: Crew, bundle: Bundle) -> None:
    one = entry(bundle, "onnx-fp32")
    crew.open(one)
    crew.check(one)
    [worker] = crew._workers.values()
    threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL)).start()
    with pytest.raises(VggdeployError, match="SIGKILL") as caught:
        crew.turn(one, 1, 20.0)
    assert "--variant" in caught.value.hint


def test_an_error_in_a_worker_keeps_its_kind(crew: Crew, bundle: Bundle) -> None:
    with pytest.raises(IncompatibleError):
        crew.open(entry(bundle, "onnx-fp32", device="cuda"))


def test_a_bug_in_a_worker_says_that_it_is_one_and_keeps_its_trace(crew: Crew, bundle: Bundle) -> None:
    one = entry(bundle, "onnx-fp32")
    crew.open(one)
    with pytest.raises(VggdeployError, match="KeyError") as caught:
        crew.turn(one, 1, 0.1)  # without a check before it
    assert "bug" in caught.value.hint
    assert "in _turn" in caught.value.__notes__[0]


def test_inputs_that_do_not_fit_are_refused_by_the_worker(bundle: Bundle) -> None:
    with Crew(np.zeros((2, 3, 3, 1), np.uint8), batches=(1,)) as made, pytest.raises(InputError):
        made.open(entry(bundle, "onnx-fp32"))


def test_bytes_that_changed_since_the_bundle_was_opened_are_not_run(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    path = own_bundle / bundle.manifest.variant("onnx-fp32").path
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with Crew(bundle.golden()[0]["image"], batches=(1,)) as made, pytest.raises(IntegrityError):
        made.open(entry(bundle, "onnx-fp32"))


def test_pinned_workers_run_where_they_may(bundle: Bundle) -> None:
    cpu = min(os.sched_getaffinity(0))
    with Crew(bundle.golden()[0]["image"], batches=(1,), pin=(cpu,)) as made:
        opened = made.open(entry(bundle, "onnx-fp32"))
        [worker] = made._workers.values()
        assert os.sched_getaffinity(worker.pid) == {cpu}
    assert opened.threads == 1


def test_a_worker_that_cannot_start_says_its_last_words(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho first >&2; echo 'no such library' >&2; exit 7\n")
    program.chmod(0o755)
    monkeypatch.setattr("vggdeploy.bench.crew.WORKER_COMMAND", (str(program),))
    with (
        Crew(np.zeros((1, 2), np.uint8), batches=(1,)) as made,
        pytest.raises(VggdeployError, match="code 7: no such library"),
    ):
        made.open(entry(bundle, "onnx-fp32"))


def test_a_start_that_fails_is_told_with_the_first_answer(bundle: Bundle) -> None:
    with (
        Crew(np.zeros((1, 2), np.uint8), batches=(1,), pin=(100_000,)) as made,
        pytest.raises(VggdeployError, match="OSError"),
    ):
        made.open(entry(bundle, "onnx-fp32"))


def bench(bundle_dir: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vggdeploy", "bench", str(bundle_dir), "--variant", "onnx-fp32", "--batch", "1"]
    return subprocess.Popen(
        [*command, "--duration", "60", *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def worker_of(process: subprocess.Popen[str]) -> int:
    """The process id of its worker, once it measures."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for pid in children(process.pid):
            if "vggdeploy.bench.worker" in Path(f"/proc/{pid}/cmdline").read_text():
                time.sleep(1)
                return pid
        time.sleep(0.05)
    raise AssertionError("it started no worker")


def gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_whatever_ends_the_command_ends_its_worker(bundle_dir: Path, sent: int, code: int) -> None:
    process = bench(bundle_dir)
    worker = worker_of(process)
    process.send_signal(sent)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert gone(worker)
    assert out == ""
    assert "Traceback" not in err
    if sent == signal.SIGINT:
        assert "interrupted" in err


def test_a_killed_worker_ends_the_command_with_two_lines(bundle_dir: Path) -> None:
    process = bench(bundle_dir)
    os.kill(worker_of(process), signal.SIGKILL)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert len(err.splitlines()) == 2
    assert "SIGKILL" in err
