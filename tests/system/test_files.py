"""Files are whole or not there, and a path from outside never leads outside."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vggdeploy.errors import UsageError
from vggdeploy.system import exchange
from vggdeploy.system.files import atomic_directory, atomic_write, check_replaceable, link_tree

KILLER = Path(__file__).parents[1] / "attacks" / "kill_at_every_line.py"
MARKER = "marker"


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: a thousand fsyncs cost nothing there."""
    if not os.access("/dev/shm", os.W_OK):  # noqa: S108  # mkdtemp below makes our own directory
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def replace(target: Path, content: bytes = b"new", *, overwrite: bool = True) -> None:
    with atomic_directory(target, marker=MARKER, overwrite=overwrite) as draft:
        (draft / MARKER).write_bytes(content)


def run_killer(scenario: str, work: Path, *step: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(KILLER), scenario, str(work), *step], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# Killed, full, interrupted


@pytest.mark.parametrize(
    ("scenario", "before", "least"),
    [("file", "old", 30), ("first", "none", 70), ("directory", "old", 150)],
)
def test_a_writer_killed_at_any_line_leaves_the_old_or_the_new(
    scenario: str, before: str, least: int, memory: Path
) -> None:
    found = run_killer(scenario, memory)
    assert found["kills"] >= least
    assert set(found["left"]) == {before, "new"}
    # The next write succeeds, and removes what the dead one left behind.
    assert set(found["after"]) == {"new"}
    assert found["strays"] == {}


def test_without_an_exchange_a_kill_leaves_old_new_or_for_an_instant_nothing(memory: Path) -> None:
    found = run_killer("no-exchange", memory)
    assert set(found["left"]) == {"old", "new", "none"}
    assert found["left"]["none"] <= 3
    assert set(found["after"]) == {"new"}
    assert found["strays"] == {}


def test_what_was_set_aside_is_put_back_by_the_next_writer(tmp_path: Path) -> None:
    aside = tmp_path / f".bundle.old-{'0' * 16}"
    aside.mkdir()
    (aside / MARKER).write_bytes(b"old")
    with pytest.raises(UsageError, match="already exists"):
        replace(tmp_path / "bundle", overwrite=False)
    assert (tmp_path / "bundle" / MARKER).read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_the_old_file_and_no_draft(tiny_disk: Path) -> None:
    atomic_write(tiny_disk / "report", b"old")
    with pytest.raises(OSError, match="No space left") as caught:
        atomic_write(tiny_disk / "report", b"n" * 100_000)
    assert caught.value.errno == errno.ENOSPC
    assert [(p.name, p.read_bytes()) for p in tiny_disk.iterdir()] == [("report", b"old")]


def test_a_full_disk_leaves_the_old_directory_and_no_draft(tiny_disk: Path) -> None:
    replace(tiny_disk / "bundle", b"old")
    with pytest.raises(OSError, match="No space left"):
        replace(tiny_disk / "bundle", b"n" * 100_000)
    assert [p.name for p in tiny_disk.iterdir()] == ["bundle"]
    assert (tiny_disk / "bundle" / MARKER).read_bytes() == b"old"


def test_a_file_over_the_size_limit_leaves_the_old_one(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
from vggdeploy.system.files import atomic_write
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
target = Path(sys.argv[1])
atomic_write(target, b"old")
try:
    atomic_write(target, b"n" * 5000)
except OSError as error:
    print(error.errno, target.read_bytes(), len(list(target.parent.iterdir())))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "file")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{errno.EFBIG} b'old' 1"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_what_stood_there(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "bundle"
    replace(target, b"old")
    with (
        pytest.raises(error),
        atomic_directory(target, marker=MARKER, overwrite=True) as draft,
    ):
        (draft / MARKER).write_bytes(b"new")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert (target / MARKER).read_bytes() == b"old"


def test_a_failed_exchange_leaves_what_stood_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(tmp_path / "bundle", b"old")

    def failing(*_: object) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    class Library:
        renameat2 = staticmethod(failing)

    monkeypatch.setattr(exchange.ctypes, "CDLL", lambda *_, **__: Library)
    with pytest.raises(OSError, match="Input/output error"):
        replace(tmp_path / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert (tmp_path / "bundle" / MARKER).read_bytes() == b"old"


# In one step


def test_replacing_exchanges_the_two_directories_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_rename(*_: object) -> None:
        raise OSError(errno.ENOTEMPTY, "rename(2) of a full directory")

    replace(tmp_path / "bundle", b"old")
    monkeypatch.setattr(Path, "rename", no_rename)
    with atomic_directory(tmp_path / "bundle", marker=MARKER, overwrite=True) as draft:
        (draft / MARKER).write_bytes(b"new")
        inode = draft.stat().st_ino
    assert (tmp_path / "bundle").stat().st_ino == inode


def test_a_reader_never_finds_nothing_or_a_part(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    replace(target, b"0" * 1000)
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add((target / MARKER).read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(100):
        replace(target, str(i % 10).encode() * 1000)
    stop.set()
    reader.join()
    assert all(len(content) == 1000 and len(set(content)) == 1 for content in seen)


def test_without_renameat2_the_directory_is_still_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(tmp_path / "bundle", b"old")
    monkeypatch.setattr(exchange.ctypes, "CDLL", lambda *_, **__: object())
    replace(tmp_path / "bundle", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert (tmp_path / "bundle" / MARKER).read_bytes() == b"new"


def test_a_directory_of_an_image_layer_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(tmp_path / "bundle", b"old")

    def cross_device(*_: object) -> int:
        ctypes.set_errno(errno.EXDEV)
        return -1

    class Library:
        renameat2 = staticmethod(cross_device)

    monkeypatch.setattr(exchange.ctypes, "CDLL", lambda *_, **__: Library)
    with pytest.raises(UsageError, match="container image's layer") as caught:
        replace(tmp_path / "bundle")
    assert caught.value.hint == "work on a copy"


# Modes and targets


@pytest.mark.parametrize(("mask", "file_mode", "directory_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_modes_respect_the_umask(tmp_path: Path, mask: int, file_mode: int, directory_mode: int) -> None:
    before = os.umask(mask)
    try:
        atomic_write(tmp_path / "file", b"")
        replace(tmp_path / "bundle")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == file_mode
    assert stat.S_IMODE((tmp_path / "bundle").stat().st_mode) == directory_mode


def test_writing_never_touches_the_umask_of_other_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(mask: int) -> int:
        raise AssertionError(f"umask({mask:o})")

    monkeypatch.setattr(os, "umask", touched)
    atomic_write(tmp_path / "file", b"")
    replace(tmp_path / "bundle")


def test_a_directory_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_bytes(b"precious")
    with pytest.raises(UsageError, match="holds other files"):
        replace(tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").read_bytes() == b"precious"


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    replace(tmp_path / "bundle", overwrite=False)
    assert (tmp_path / "bundle" / MARKER).read_bytes() == b"new"


def test_a_file_is_not_replaced_by_a_directory(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(b"a file")
    with pytest.raises(UsageError, match="is not a directory"):
        replace(tmp_path / "bundle")


def test_a_link_to_a_directory_is_refused_and_the_directory_named(tmp_path: Path) -> None:
    replace(tmp_path / "v1", b"one")
    (tmp_path / "current").symlink_to("v1")
    with pytest.raises(UsageError, match="symbolic link") as caught:
        replace(tmp_path / "current")
    assert str(tmp_path / "v1") in caught.value.hint
    assert (tmp_path / "v1" / MARKER).read_bytes() == b"one"


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to("nowhere")
    with pytest.raises(UsageError, match="symbolic link"):
        replace(tmp_path / "bundle")


@pytest.mark.parametrize("name", [".", "..", "../inside", "../../{}"])
def test_the_current_directory_is_not_pulled_from_under_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    with pytest.raises(UsageError, match="the current directory lies in"):
        replace(Path(name.format(tmp_path.name)))
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]


def test_a_relative_target_is_kept_when_the_block_changes_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with atomic_directory(Path("bundle"), marker=MARKER, overwrite=False) as draft:
        (draft / MARKER).write_bytes(b"new")
        os.chdir(tmp_path / "elsewhere")
    assert (tmp_path / "bundle" / MARKER).exists()


def test_a_mount_point_is_refused_before_the_work(tiny_disk: Path) -> None:
    with pytest.raises(UsageError, match="mount point"):
        check_replaceable(tiny_disk, marker=MARKER, overwrite=True)


def test_a_file_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    atomic_write(tmp_path / "link", b"data")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"data"


def test_a_device_is_never_replaced_by_a_file() -> None:
    with pytest.raises(UsageError, match="not a regular file"):
        atomic_write(Path(os.devnull), b"data")
    assert Path(os.devnull).is_char_device()


def test_where_links_cannot_be_made_files_are_copied(tmp_path: Path, memory: Path) -> None:
    if memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two file systems")
    (memory / "source").mkdir()
    (memory / "source" / "file").write_bytes(b"data")
    link_tree(memory / "source", tmp_path / "copy")
    assert (tmp_path / "copy" / "file").read_bytes() == b"data"
