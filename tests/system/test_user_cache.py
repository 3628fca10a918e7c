"""The cache of this user: where it is, what of it is believed, and what goes when it is full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from attacks.foreign_cache import ATTACKS

from vggdeploy.system.cache import Cache, cache_home, key_of

KEY, OTHER = key_of("one"), key_of("another")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, told: list[str]) -> Cache:
    return Cache(tmp_path / "home", suffix=".bin", limit=10, note=told.append)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VGGDEPLOY_CACHE", "~/mine")
    assert cache_home() == Path("~/mine").expanduser()
    monkeypatch.delenv("VGGDEPLOY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_home() == tmp_path / "vggdeploy"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_home() == Path("~/.cache/vggdeploy").expanduser()


def test_what_was_written_is_read_and_only_its_owner_may_see_it(cache: Cache, told: list[str]) -> None:
    assert cache.read(KEY, limit=9) is None
    cache.write(KEY, b"bytes")
    assert cache.read(KEY, limit=9) == b"bytes"
    assert cache.path(KEY).stat().st_mode & 0o777 == 0o600
    assert cache.home.stat().st_mode & 0o777 == 0o700
    assert not told
    assert cache.read(KEY, limit=4) is None
    assert "more than 4 bytes" in told[0]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_another_user_could_have_written_is_not_read(
    cache: Cache, told: list[str], attack: str, what: str
) -> None:
    cache.write(KEY, b"bytes")
    ATTACKS[attack](cache.home if what == "directory" else cache.path(KEY))
    assert cache.read(KEY, limit=9) is None
    assert len(told) == 1


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_written_where_another_user_could_write(cache: Cache, attack: str) -> None:
    cache.write(KEY, b"bytes")
    ATTACKS[attack](cache.home)
    cache.write(OTHER, b"more")
    assert not cache.path(OTHER).exists()


@pytest.mark.parametrize("attack", sorted(ATTACKS.keys() - {"a link"}))
def test_a_directory_above_that_another_user_could_exchange_is_refused(
    tmp_path: Path, told: list[str], attack: str
) -> None:
    above = tmp_path / "above"
    cache = Cache(above / "vggdeploy" / "home", suffix=".bin", limit=10, note=told.append)
    cache.write(KEY, b"bytes")
    ATTACKS[attack](above)
    assert cache.read(KEY, limit=9) is None
    assert not cache.writable()
    assert all(str(above) in text and "it belongs to" in text and "its mode is" in text for text in told)
    assert len(told) == 2


def test_above_a_cache_are_links_and_directories_like_tmp(tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    (tmp_path / "link").symlink_to("tmp")
    cache = Cache(tmp_path / "link" / "vggdeploy" / "home", suffix=".bin", limit=10, note=told.append)
    cache.write(KEY, b"bytes")
    assert cache.read(KEY, limit=9) == b"bytes"
    assert not told
    assert (tmp_path / "tmp" / "vggdeploy").stat().st_mode & 0o777 == 0o700


def test_a_link_is_replaced_and_not_followed(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    cache.home.mkdir(mode=0o700)
    cache.path(KEY).symlink_to(tmp_path / "precious")
    cache.write(KEY, b"bytes")
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert cache.read(KEY, limit=9) == b"bytes"


def test_a_pipe_is_not_read(cache: Cache) -> None:
    cache.home.mkdir(mode=0o700)
    os.mkfifo(cache.path(KEY), 0o600)
    assert cache.read(KEY, limit=9) is None


@pytest.mark.parametrize("again", ["read", "write"])
def test_what_a_killed_writer_left_goes_with_the_next_use_of_any_entry(cache: Cache, again: str) -> None:
    """A proof of a variant that is never opened again here would else keep its draft for ever."""
    cache.write(KEY, b"one")
    left = cache.home / f".{'b' * 64}.json.tmp-{'0' * 16}"
    left.write_bytes(b"half")
    mine = cache.home / ".notes.tmp"
    mine.write_bytes(b"not a draft")
    cache.read(KEY, limit=100) if again == "read" else cache.write(KEY, b"two")
    assert not left.exists()
    assert mine.exists()


def test_what_was_not_used_for_longest_goes_and_other_files_stay(cache: Cache) -> None:
    cache.write(KEY, b"12345")
    (cache.home / "notes.bin").write_bytes(b"not an entry")
    cache.write(OTHER, b"1234")
    for key, used in ((KEY, 1), (OTHER, 2)):
        os.utime(cache.path(key), (used, used))
    cache.read(KEY, limit=9)
    cache.write(key_of("third"), b"12345")
    assert not cache.path(OTHER).exists()
    assert cache.path(KEY).exists()
    assert (cache.home / "notes.bin").exists()


def test_a_mask_that_lets_the_group_write_does_not_hide_a_directory_s_files(tmp_path: Path) -> None:
    cache, before = Cache(tmp_path / "home", limit=100), os.umask(0o002)
    try:
        assert cache.writable()
        with cache.entry(KEY, lambda: None, lambda path: (path / "part").write_bytes(b"bytes"), on_wait=lambda: None):
            assert cache.read(KEY, "part", limit=9) == b"bytes"
    finally:
        os.umask(before)


def test_a_user_whom_no_passwd_file_knows_has_the_root_as_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    monkeypatch.delenv("VGGDEPLOY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_home() == Path("/.cache/vggdeploy")
