"""The kernels that were compiled on a machine: kept for the next start, never in a bundle, never another user's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from attacks.foreign_cache import ATTACKS
from fakes.gpu import Library, expected, pixels

from vggdeploy.runtime import GpuOptions
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.tensorrt.rtx import RtxSession
from vggdeploy.system.sealed import HashedFile


def run(source):
    with RtxSession(source) as session:
        image = pixels(2)
        assert (session.run({"image": image})["logits"] == expected(image)).all()
        return session


def files(home: Path) -> list[Path]:
    return sorted(p for p in home.rglob("*") if p.is_file())


def test_kernels_are_kept_in_the_user_s_cache_and_read_at_the_next_start(gpu, source, tmp_path):
    _, library = gpu()
    run(source)
    [kept] = files(tmp_path / "cache")
    assert kept.read_bytes() == b"compiled here"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert library.cache_read == []
    run(source)
    assert library.cache_read == [b"compiled here"]
    assert files(source.file.path.parent) == sorted([source.file.path, kept])  # nothing beside the engine


def test_a_place_of_one_s_own_and_what_is_unchanged_is_not_written_again(gpu, source, tmp_path):
    gpu()
    own = replace(source, gpu=GpuOptions(cache=tmp_path / "own"))
    run(own)
    [kept] = files(tmp_path / "own")
    written = kept.stat().st_ino  # a file that is written anew is another one
    run(own)
    assert kept.stat().st_ino == written


@pytest.mark.parametrize("change", ["engine", "version", "gpu"])
def test_every_engine_release_and_gpu_has_its_own(gpu, source, tmp_path, monkeypatch, change):
    gpu()
    run(source)
    library = Library()
    if change == "version":
        library.__version__ = "1.8.0"
    gpu(library=library)
    if change == "engine":
        source.file.path.write_bytes(b"another")
        source = replace(source, file=HashedFile.of(source.file.path))
    if change == "gpu":
        monkeypatch.setattr(cuda, "find_gpu", lambda device: cuda.Gpu(0, "Another GPU", "sm86", "13.0"))
    run(source)
    assert library.cache_read == []
    assert len(files(tmp_path / "cache")) == 2


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("what", ["file", "directory"])
def test_kernels_that_others_may_write_are_not_read(gpu, source, tmp_path, attack, what):
    gpu()
    run(source)
    [kept] = files(tmp_path / "cache")
    ATTACKS[attack](kept.parent if what == "directory" else kept)
    _, library = gpu()
    run(source)
    assert library.cache_read == []


def test_a_cache_of_another_driver_costs_time_and_nothing_else(gpu, source):
    gpu()
    run(source)
    _, library = gpu(library=Library("deserialize"))
    run(source)
    assert library.cache_read == [b"compiled here"]


def test_a_cache_that_cannot_be_written_or_taken_is_no_error(gpu, source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    gpu()
    run(replace(source, gpu=GpuOptions(cache=tmp_path / "file" / "below")))
    gpu(library=Library("set_runtime_cache"))
    run(source)
