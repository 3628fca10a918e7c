"""The kernels that were compiled on a machine: kept for the next start, never in a bundle, never another user's."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import tensorrt_rtx
from attacks.foreign_cache import ATTACKS
from fakes.gpu import Library, expected, pixels

from vggdeploy.errors import IncompatibleError, VggdeployError
from vggdeploy.runtime import GpuOptions
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.tensorrt.api import Log, logger_for
from vggdeploy.runtime.tensorrt.rtx import RtxSession
from vggdeploy.runtime.tensorrt.session import MAX_KEPT
from vggdeploy.system.cache import Cache
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import BatchRange


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


def test_kernels_are_kept_as_soon_as_a_batch_of_a_new_size_has_run(gpu, source, tmp_path):
    _, library = gpu()
    with RtxSession(source) as session:
        assert files(tmp_path / "cache") == []
        session.run({"image": pixels(2)})
        [kept] = files(tmp_path / "cache")
        assert kept.read_bytes() == b"compiled here"
        library.kernels = b"and for another size"
        session.run({"image": pixels(2)})
        assert (library.serialised, kept.read_bytes()) == (1, b"compiled here")
        session.run({"image": pixels(4)})
        assert kept.read_bytes() == b"and for another size"


def test_what_is_kept_is_asked_for_a_bounded_number_of_times(gpu, source):
    library = Library()
    library.profiles = [(1, 2, 40)]
    gpu(library=library)
    with RtxSession(replace(source, batch=BatchRange(1, 2, 40))) as session:
        for size in [*range(1, 41)] * 2:
            session.run({"image": pixels(size)})
        assert library.serialised == MAX_KEPT
    assert library.serialised == MAX_KEPT + 1  # and once more at the end


def test_nothing_is_asked_of_the_library_while_another_thread_is_in_it(gpu, source):
    _, library = gpu()
    with RtxSession(source) as session:
        with session.lane(), ThreadPoolExecutor(1) as other:
            other.submit(session.run, {"image": pixels(2)}).result(timeout=30)
            assert library.serialised == 0
        session.run({"image": pixels(2)})
        assert library.serialised == 1


def test_who_writes_the_kernels_keeps_no_other_thread_waiting(gpu, source, monkeypatch):
    gpu()
    with RtxSession(source) as session, ThreadPoolExecutor(1) as other:
        write = Cache.write

        def written_meanwhile(self: Cache, key: str, data: bytes) -> None:
            image = pixels(1)
            answer = other.submit(session.run, {"image": image}).result(timeout=30)
            assert (answer["logits"] == expected(image)).all()
            write(self, key, data)

        with monkeypatch.context() as patch:
            patch.setattr(Cache, "write", written_meanwhile)
            session._kept.add(1)  # the other thread's size, so that it writes nothing itself
            session.run({"image": pixels(2)})
        assert len(session.pool.lanes) == 2


def test_a_failed_batch_keeps_nothing_and_a_library_without_kernels_is_no_error(gpu, source, tmp_path):
    _, library = gpu(library=Library("execute_async_v3"))
    with RtxSession(source) as session:
        with pytest.raises(VggdeployError):
            session.run({"image": pixels(2)})
        assert library.serialised == 0
        library.fault, library.kernels = None, None
        session.run({"image": pixels(2)})
    assert files(tmp_path / "cache") == []


def test_a_killed_process_leaves_the_kernels_of_what_it_ran(tmp_path):
    """SIGKILL right after the first batch: the next start finds them whole."""
    code = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from fakes.gpu import Cudart, Library, pixels
        from fakes.sessions import source_at
        from vggdeploy.runtime.gpu import cuda
        from vggdeploy.runtime.tensorrt import session as backend
        from vggdeploy.runtime.tensorrt.rtx import RtxSession
        library = Library()
        library.kernels = bytes(range(256)) * 40_000
        cuda.bindings = lambda: library.cudart
        cuda.find_gpu = lambda device: cuda.Gpu(0, "Test GPU", "sm89", "13.0")
        backend.backend_library = lambda *a, **k: library
        session = RtxSession(source_at(Path({str(tmp_path / "e.engine")!r}))).__enter__()
        session.run({{"image": pixels(2)}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = {**os.environ, "VGGDEPLOY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    [kept] = files(tmp_path / "cache")
    assert kept.suffix == ".cache" and kept.read_bytes() == bytes(range(256)) * 40_000


@pytest.mark.parametrize("flag", [*tensorrt_rtx.EngineInvalidityDiagnostics.__members__, "VALIDITY"])
def test_an_engine_that_its_header_condemns_is_refused_with_the_reason_and_not_deserialised(gpu, source, flag):
    cudart, library = gpu(library=Library(flag))
    with (
        pytest.raises(IncompatibleError, match=r"TensorRT for RTX .* refuses model.engine: \w") as caught,
        RtxSession(source),
    ):
        pass
    assert caught.value.hint and (flag == "VALIDITY") == ("it gave no reason" in caught.value.cause)
    assert library.seen == []
    del caught
    gc.collect()
    assert not cudart.alive and not library.alive


def test_the_real_library_says_of_a_header_that_it_is_none():
    """No GPU is needed for that: the file is not deserialised."""
    runtime = tensorrt_rtx.Runtime(logger_for(tensorrt_rtx, log := Log()))
    validity, found = runtime.get_engine_validity(b"no engine at all" * 8)
    assert validity == tensorrt_rtx.EngineValidity.INVALID
    assert found & int(tensorrt_rtx.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    del log
