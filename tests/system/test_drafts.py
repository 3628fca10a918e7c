"""Temporary directories: locked while they are used, and removed by the next command when their maker was killed."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from vggdeploy.system.drafts import temporary_directory

PREFIX = "vggdeploy-some-"


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def killed_inside() -> None:
    child = os.fork()
    if not child:
        with temporary_directory(PREFIX) as path:
            (path / "file").write_bytes(b"x")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_what_a_killed_command_left_goes_with_the_next(tmp_path: Path) -> None:
    killed_inside()
    killed_inside()
    assert len(list(tmp_path.iterdir())) == 1
    with temporary_directory(PREFIX):
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


def test_what_is_in_use_stays_and_so_does_what_is_not_ours_to_remove(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / f"{PREFIX}abcdefgh").symlink_to(outside)
    (tmp_path / f"{PREFIX}a-file-of-another-name").mkdir()
    with temporary_directory(PREFIX) as first, temporary_directory(PREFIX) as second:
        assert first.is_dir()
        assert second.is_dir()
    assert {p.name for p in tmp_path.iterdir()} == {"outside", f"{PREFIX}abcdefgh", f"{PREFIX}a-file-of-another-name"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_directory_stays(tmp_path: Path) -> None:
    other = tmp_path / f"{PREFIX}abcdefgh"
    other.mkdir()
    os.chown(other, 65534, 65534)
    with temporary_directory(PREFIX):
        pass
    assert other.is_dir()
