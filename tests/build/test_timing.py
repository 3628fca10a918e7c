"""Timing caches: read before a build, added to afterwards, also by several builds at the same time."""

from __future__ import annotations

import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vggdeploy.build import timing
from vggdeploy.build.timing import keep_times, use_times
from vggdeploy.errors import BuildError

LIBRARY = types.SimpleNamespace(__name__="tensorrt", __version__="10.13.3.9")


class Times:
    """An ``ITimingCache``: entries of one library. It combines with those of the same one only, as TensorRT's does."""

    def __init__(self, data: bytes, library: bytes) -> None:
        self.library, _, entries = data.partition(b":") if data else (library, b"", b"")
        self.entries = set(filter(None, entries.split(b",")))

    def serialize(self) -> bytes:
        return self.library + b":" + b",".join(sorted(self.entries))

    def combine(self, other: Times, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if other.library != self.library:
            return False
        self.entries |= other.entries
        return True


class Config:
    """An ``IBuilderConfig`` of one build."""

    def __init__(self, library: bytes = b"10.13 H100") -> None:
        self.library = library
        self.cache = Times(b"", library)

    def create_timing_cache(self, data: bytes) -> Times:
        return Times(data, self.library)

    def set_timing_cache(self, cache: Times, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return cache.library == self.library

    def get_timing_cache(self) -> Times:
        return self.cache


def build(file: Path, *kernels: bytes) -> Config:
    """What a build does with the file until it ends."""
    config = Config()
    use_times(LIBRARY, config, file)
    config.cache.entries |= set(kernels)
    return config


def entries(file: Path) -> set[bytes]:
    return Times(file.read_bytes(), b"").entries


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vgg.timing"


def test_the_next_build_starts_with_the_times_of_the_last(file: Path) -> None:
    keep_times(LIBRARY, build(file, b"a"), file)
    again = build(file, b"b")
    assert again.cache.entries == {b"a", b"b"}
    keep_times(LIBRARY, again, file)
    assert entries(file) == {b"a", b"b"}
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # no lock, no draft


def test_of_two_builds_at_the_same_time_neither_loses_its_times(file: Path) -> None:
    one, other = build(file, b"a"), build(file, b"b")
    keep_times(LIBRARY, one, file)
    keep_times(LIBRARY, other, file)
    assert entries(file) == {b"a", b"b"}


def test_writers_wait_for_each_other(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = timing.atomic_write

    def slow(path: Path, data: bytes) -> None:
        time.sleep(0.02)  # between what was read and what is written
        real(path, data)

    monkeypatch.setattr(timing, "atomic_write", slow)
    builds = [build(file, str(number).encode()) for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda config: keep_times(LIBRARY, config, file), builds))
    assert entries(file) == {str(number).encode() for number in range(8)}


def test_processes_wait_for_each_other(file: Path) -> None:
    keep_times(LIBRARY, build(file, b"a"), file)
    code = (
        "import fcntl, os, sys, time; fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600);"
        "fcntl.flock(fd, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.readline();"
        "from pathlib import Path; Path(sys.argv[2]).write_bytes(b'10.13 H100:a,theirs')"
    )
    lock = file.with_name(f".{file.name}.lock")
    holder = subprocess.Popen(
        [sys.executable, "-c", code, lock, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(keep_times, LIBRARY, build(file, b"mine"), file)
            holder.communicate("go\n")  # it writes, and its lock ends with it
            waiting.result()
    finally:
        holder.kill()
        holder.wait()
    assert entries(file) == {b"a", b"theirs", b"mine"}


def test_a_foreign_cache_is_refused_before_the_build_and_never_overwritten_after_it(file: Path, caplog) -> None:
    mine = build(file, b"mine")
    file.write_bytes(b"11.4 L4:foreign")
    keep_times(LIBRARY, mine, file)
    assert file.read_bytes() == b"11.4 L4:foreign"
    assert "another version or GPU" in caplog.text
    with pytest.raises(BuildError, match="refuses the timing cache"):
        build(file)
