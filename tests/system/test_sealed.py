"""What was hashed cannot change: the copy is sealed, has no name that others could open, and is gone when it is closed."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from pathlib import Path

import pytest
from attacks.swapping import SWAPS

from vggdeploy.errors import BundleError, IntegrityError
from vggdeploy.system.sealed import HashedFile, shown

DATA = bytes(range(256)) * 9000  # more than two blocks


@pytest.fixture
def file(tmp_path: Path) -> HashedFile:
    path = tmp_path / "model.onnx"
    path.write_bytes(DATA)
    return HashedFile(path, hashlib.sha256(DATA).hexdigest(), len(DATA))


@pytest.mark.parametrize("swap", SWAPS)
def test_the_copy_keeps_the_bytes_of_the_hash(file: HashedFile, swap: str) -> None:
    with file.open() as sealed:
        SWAPS[swap](file.path)
        assert sealed.path.read_bytes() == bytes(sealed.map()) == DATA
        assert (sealed.size, sealed.name, shown(sealed.path)) == (len(DATA), "model.onnx", "model.onnx")
        assert sealed.head(3) == DATA[:3]
    with pytest.raises(IntegrityError), file.open():
        pass


def test_nobody_writes_to_the_copy_not_even_this_process(file: HashedFile) -> None:
    with file.open() as sealed:
        with pytest.raises(OSError) as caught:
            os.write(sealed.fd, b"x")
        assert caught.value.errno in (errno.EBADF, errno.EPERM)
        with open(sealed.path, "r+b") as writer, pytest.raises(PermissionError):  # noqa: PTH123
            os.write(writer.fileno(), b"x")
        with open(sealed.path, "r+b") as writer, pytest.raises(PermissionError):  # noqa: PTH123
            mmap.mmap(writer.fileno(), 0)
        with open(sealed.path, "r+b") as writer, pytest.raises(PermissionError):  # noqa: PTH123
            os.ftruncate(writer.fileno(), 1)


def test_a_closed_copy_leaves_no_descriptor_and_what_was_mapped_stays(file: HashedFile) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with file.open() as sealed:
        mapped = sealed.map()
    assert bytes(mapped) == DATA
    del mapped
    for wrong in (HashedFile(file.path, "0" * 64), HashedFile(file.path, file.sha256, 1)):
        with pytest.raises(IntegrityError), wrong.open():
            pass
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_bytes_in_memory_are_those_of_the_hash_and_no_more_than_the_limit(file: HashedFile) -> None:
    assert file.read(limit=len(DATA)) == DATA
    with pytest.raises(IntegrityError, match="more than"):
        file.read(limit=len(DATA) - 1)


@pytest.mark.parametrize("what", ["gone", "directory", "pipe"])
def test_what_is_no_file_is_refused_and_nothing_hangs(file: HashedFile, what: str) -> None:
    file.path.unlink()
    if what == "directory":
        file.path.mkdir()
    if what == "pipe":
        os.mkfifo(file.path)
    with pytest.raises(BundleError), file.open():
        pass


def test_an_empty_file_and_a_name_that_is_no_text_are_files(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff" + b"x" * 200)
    path.write_bytes(b"")
    with HashedFile.of(path).open() as sealed:
        assert (sealed.size, sealed.map()) == (0, b"")
