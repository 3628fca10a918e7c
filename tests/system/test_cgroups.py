"""A container's quota decides the number of threads: read from a made-up root, as the kernel writes these files."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

import vggdeploy.system.machine as module
from vggdeploy.runtime.base import Source
from vggdeploy.system.machine import cpu_quota, memory_limit, quota_stops, usable_cores


def root(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


V2 = {"proc/self/cgroup": "0::/\n"}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({**V2, "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({**V2, "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({**V2, "sys/fs/cgroup/cpu.max": "5000 100000\n"}, 0.05),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
            },
            2,
        ),
        # A container that sees the host's path, but only its own files.
        ({"proc/self/cgroup": "0::/../../pods/x\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n",
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({**V2, "sys/fs/cgroup/cpu.max": "rubbish\n"}, None),
        ({**V2, "sys/fs/cgroup/cpu.max": "100000 0\n"}, None),
        ({"proc/self/cgroup": "rubbish"}, None),
        ({}, None),
    ],
)
def test_the_quota_is_the_smallest_on_the_way_up(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    assert cpu_quota(root(tmp_path, files)) == quota


STAT = "nr_periods 102\nnr_throttled 89\nthrottled_usec 4400000\n"


@pytest.mark.parametrize(
    ("files", "stops"),
    [
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
                "sys/fs/cgroup/a/cpu.stat": STAT,
            },
            89,
        ),
        (
            {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/cpu.max": "50000 100000\n", "sys/fs/cgroup/cpu.stat": STAT},
            89,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.stat": STAT,
            },
            89,
        ),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.stat": STAT,
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/cpu.max": "1 1\n",
                "sys/fs/cgroup/a/cpu.stat": "nr_throttled x\n",
            },
            None,
        ),
    ],
)
def test_the_stops_of_a_quota_are_counted_where_there_is_one(
    files: dict[str, str], stops: int | None, tmp_path: Path
) -> None:
    assert quota_stops(root(tmp_path, files)) == stops


@pytest.mark.parametrize("quota", [0.01, 0.5, 1.0, 1.01, 1.5, 2.0, 1e6])
def test_cores_are_the_quota_rounded_up_at_least_one_and_never_more_than_there_are(
    quota: float, tmp_path: Path
) -> None:
    files = {**V2, "sys/fs/cgroup/cpu.max": f"{int(quota * 100_000)} 100000\n"}
    here = len(os.sched_getaffinity(0))
    assert usable_cores(root(tmp_path, files)) == max(1, min(here, math.ceil(quota)))


def test_without_a_quota_it_is_every_core_of_this_process(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({**V2, "sys/fs/cgroup/memory.max": "1073741824\n"}, 2**30),
        ({**V2, "sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"proc/self/cgroup": "3:memory:/x\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "4096\n"}, 4096),
        ({"proc/self/cgroup": "3:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, None),
    ],
)
def test_the_memory_limit(files: dict[str, str], limit: int | None, tmp_path: Path) -> None:
    assert memory_limit(root(tmp_path, files)) == limit


def test_an_engine_computes_with_no_more_threads_than_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle_dir: Path
) -> None:
    import torch

    import vggdeploy

    files = {**V2, "sys/fs/cgroup/cpu.max": "50000 100000\n"}
    monkeypatch.setattr(module, "cpu_quota", lambda _=None: cpu_quota(root(tmp_path, files)))
    before = torch.get_num_threads()
    try:
        with vggdeploy.load(bundle_dir, variant="onnx-fp32") as engine:
            source: Source = engine._session._session._source  # type: ignore[attr-defined]
            assert source.thread_count == 1
        with vggdeploy.load(bundle_dir, variant="torchscript-fp32"):
            assert torch.get_num_threads() == 1
        with vggdeploy.load(bundle_dir, variant="onnx-fp32", threads=2) as engine:
            assert engine._session._session._source.thread_count == 2  # type: ignore[attr-defined]
    finally:
        torch.set_num_threads(before)
