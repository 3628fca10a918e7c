"""Several writers at once: one after the other, nobody's change lost, and the dead tidied away but not the slow."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vggdeploy.errors import BundleError, UsageError
from vggdeploy.system.files import atomic_directory, atomic_write

MARKER = "marker"


def replace(target: Path, content: bytes = b"new", *, overwrite: bool = True) -> None:
    with atomic_directory(target, marker=MARKER, overwrite=overwrite) as draft:
        (draft / MARKER).write_bytes(content)


def test_many_writers_of_one_file_end_with_one_whole_result(tmp_path: Path) -> None:
    contents = [str(i).encode() * 10_000 for i in range(8)]
    in_threads(lambda i: [atomic_write(tmp_path / "f", contents[i]) for _ in range(10)], 8)
    assert (tmp_path / "f").read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_directory_in_which_no_file_can_be_made_is_an_error_and_no_endless_loop() -> None:
    with pytest.raises(FileNotFoundError):
        atomic_write(Path("/proc/vggdeploy.md"), b"")


def test_many_writers_of_one_directory_end_with_one_whole_result(tmp_path: Path) -> None:
    contents = [str(i).encode() * 10_000 for i in range(8)]
    in_threads(lambda i: [replace(tmp_path / "b", contents[i]) for _ in range(5)], 8)
    assert (tmp_path / "b" / MARKER).read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_many_processes_end_with_one_whole_result(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from vggdeploy.system.files import atomic_directory, atomic_write
root, name = Path(sys.argv[1]), sys.argv[2]
for _ in range(20):
    atomic_write(root / "file", name.encode() * 10_000)
    with atomic_directory(root / "bundle", marker="marker", overwrite=True) as draft:
        (draft / "marker").write_text(name)
        (draft / "data").write_text(name * 10_000)
"""
    writers = [subprocess.Popen([sys.executable, "-W", "error", "-c", script, str(tmp_path), name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "file"]
    assert (tmp_path / "file").read_bytes() in [name * 10_000 for name in (b"a", b"b", b"c")]
    assert (tmp_path / "bundle" / "data").read_text() == (tmp_path / "bundle" / MARKER).read_text() * 10_000


def test_of_two_first_writers_one_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with (
        pytest.raises(UsageError, match="already exists"),
        atomic_directory(target, marker=MARKER, overwrite=False) as draft,
    ):
        (draft / MARKER).write_bytes(b"late")
        replace(target, b"first", overwrite=False)
    assert (target / MARKER).read_bytes() == b"first"


def test_another_change_meanwhile_is_not_lost(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    replace(target, b"old")
    with (
        pytest.raises(BundleError, match="changed by another command"),
        atomic_directory(target, marker=MARKER, overwrite=True, unchanged=b"old") as draft,
    ):
        (draft / MARKER).write_bytes(b"mine")
        replace(target, b"theirs")
    assert (target / MARKER).read_bytes() == b"theirs"


def test_a_removal_meanwhile_is_not_undone(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    replace(target, b"old")
    with (
        pytest.raises(BundleError, match="removed meanwhile"),
        atomic_directory(target, marker=MARKER, overwrite=True, unchanged=b"old") as draft,
    ):
        (draft / MARKER).write_bytes(b"mine")
        shutil.rmtree(target)
    assert list(tmp_path.iterdir()) == []


def test_other_files_that_came_meanwhile_are_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with (
        pytest.raises(UsageError, match="holds other files"),
        atomic_directory(target, marker=MARKER, overwrite=True) as draft,
    ):
        (draft / MARKER).write_bytes(b"mine")
        target.mkdir()
        (target / "thesis.tex").write_bytes(b"precious")
    assert (target / "thesis.tex").read_bytes() == b"precious"


def test_a_draft_in_the_making_is_not_cleaned_away(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with atomic_directory(target, marker=MARKER, overwrite=True) as slow:
        (slow / MARKER).write_bytes(b"slow")
        replace(target, b"quick")  # cleans up after the dead; the slow one lives
        assert (slow / MARKER).read_bytes() == b"slow"
    assert (target / MARKER).read_bytes() == b"slow"


def test_an_abandoned_draft_is_cleaned_away_though_its_process_id_lives(tmp_path: Path) -> None:
    # As in a container, where the dead writer and the next one are both process 1.
    script = "import os, sys; from pathlib import Path; from vggdeploy.system.files import atomic_directory\n"
    script += "with atomic_directory(Path(sys.argv[1]), marker='marker', overwrite=True): os._exit(1)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "bundle")], check=False)
    assert [p.name.startswith(".bundle.tmp-") for p in tmp_path.iterdir()] == [True]
    replace(tmp_path / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_drafts_of_other_targets_and_other_hidden_files_stay(tmp_path: Path) -> None:
    others = [".b*.tmp-0123456789abcdef", ".bundle.tmp-mine", ".bundles.tmp-0123456789abcdef", ".bundle.tmp-0123"]
    for name in others:
        (tmp_path / name).mkdir()
    replace(tmp_path / "bundle")
    replace(tmp_path / "b[u]*")
    assert {p.name for p in tmp_path.iterdir()} == {*others, "bundle", "b[u]*"}


def test_a_link_named_like_a_draft_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_bytes(b"")
    (tmp_path / f".bundle.tmp-{'a' * 16}").symlink_to(precious)
    replace(tmp_path / "bundle")
    assert (precious / "thesis.tex").exists()


def in_threads(work: Callable[[int], object], count: int) -> None:
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
