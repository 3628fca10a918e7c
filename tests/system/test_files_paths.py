"""What is read is a regular file of a bounded size, and a path from outside never leads outside."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggdeploy.errors import IntegrityError
from vggdeploy.system.files import link_tree, open_regular, read_regular, safe_join, sha256_of

# Reading


def test_sha256_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    start = time.monotonic()
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "pipe")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full"])
def test_a_device_without_end_is_refused(path: str) -> None:
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(path, limit=10)


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    assert read_regular(tmp_path / "f", limit=5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes") as caught:
        read_regular(tmp_path / "f", limit=4)
    assert caught.value.errno == errno.EFBIG


def test_a_file_of_proc_that_claims_no_size_is_limited_too() -> None:
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_regular("/proc/self/status", limit=10)


@pytest.mark.parametrize("path", ["a\0b", "\ud800"])
def test_what_cannot_be_a_name_is_an_os_error(path: str) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        open_regular(path)
    assert caught.value.errno == errno.EINVAL


def test_refused_files_leave_no_descriptor_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(OSError, match="Is a directory"):
            open_regular(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# Paths

ESCAPES = [
    "", ".", "..", "../x", "/etc/passwd", "//etc/passwd", "a/../../b", "a/..", "a/./b", "a//b", "./a", "a/", "/",
    "C:x", "C:/x", "a\\b", "..\\x", "a\0b", "\ud800", "a\nb", "a\u202eb", "~/../x",
]  # fmt: skip


@pytest.mark.parametrize("relative", ESCAPES, ids=ascii)
def test_a_path_that_leaves_or_is_not_plain_is_refused(tmp_path: Path, relative: str) -> None:
    with pytest.raises(IntegrityError):
        safe_join(tmp_path, relative)


@pytest.mark.parametrize("relative", ["a", "a/b.onnx", "...", "..a", "a..b/c", "~", "ä/ö", "a b", "-rf", "%2e%2e"])
def test_a_plain_path_is_joined(tmp_path: Path, relative: str) -> None:
    assert safe_join(tmp_path, relative) == tmp_path / relative


@pytest.mark.parametrize("target", ["/etc", "..", "real", "loop", "/"])
def test_a_link_on_the_way_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "loop").symlink_to(target)
    for relative in ("loop", "loop/passwd"):
        with pytest.raises(IntegrityError):
            safe_join(tmp_path, relative)


def test_a_root_that_is_itself_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "current").symlink_to("v1")
    assert safe_join(tmp_path / "current", "a") == tmp_path / "current" / "a"


@settings(max_examples=100)
@given(st.one_of(st.text(), st.lists(st.sampled_from(["..", ".", "", "a", "C:", "~", "\\", "\0"])).map("/".join)))
def test_any_string_is_refused_or_stays_inside(relative: str) -> None:
    root = Path("/tmp/nowhere/bundle")  # noqa: S108  # it need not exist
    try:
        path = safe_join(root, relative)
    except IntegrityError:
        return
    assert os.path.normpath(path).startswith(f"{root}/")


def test_linking_a_tree_shares_files_and_skips_links_and_pipes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_bytes(b"data")
    (source / "skipped").write_bytes(b"")
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "pipe")
    link_tree(source, tmp_path / "copy", skip=frozenset({"skipped"}))
    assert [p.relative_to(tmp_path / "copy").as_posix() for p in (tmp_path / "copy").rglob("*")] == ["sub", "sub/file"]
    assert (tmp_path / "copy/sub/file").samefile(source / "sub/file")
