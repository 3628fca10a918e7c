"""The engine cache: a second identical build is a copy, a change is a miss, damage is found, processes do not collide."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from attacks.foreign_cache import ATTACKS
from attacks.swapping import SWAPS, swap_before
from fixtures.small import write_bundle

from vggdeploy.build import request
from vggdeploy.build.cache import ENGINE, ENTRY, EngineCache, copy_file
from vggdeploy.build.engines import BundledEngine, build_into
from vggdeploy.build.options import BuildOptions
from vggdeploy.build.request import BuildPlan
from vggdeploy.bundle import Bundle
from vggdeploy.errors import BuildError
from vggdeploy.types import BatchRange, Precision

ADA = BuildPlan("tensorrt-rtx", targets=["ada"])
KINDS = {Precision.FP16, Precision.FP32}


@pytest.fixture
def cache() -> EngineCache:
    return EngineCache()


@pytest.fixture
def another(tmp_path, onnx_files) -> Bundle:
    """A second bundle with the same ONNX files."""
    return write_bundle(tmp_path / "another", {p: onnx_files[p] for p in KINDS})


@pytest.fixture(scope="module")
def filled(tmp_path_factory, onnx_files) -> Path:
    """A cache with an engine for Ada: built once for all tests that only start from it."""
    home = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VGGDEPLOY_CACHE", str(home / "cache"))
        bundle = write_bundle(home / "bundle", {p: onnx_files[p] for p in KINDS})
        assert not build_into(bundle, ADA, cache=EngineCache()).cached
    return home / "cache"


@pytest.fixture
def first(bundle, cache, filled, cache_home) -> BundledEngine:
    """That engine, in the bundle and in the cache of the test."""
    shutil.copytree(filled, cache_home)
    return build_into(bundle, ADA, cache=cache)


def entries(cache: EngineCache) -> list[Path]:
    return sorted(path.parent for path in cache.home.glob(f"*/{ENTRY}"))


def test_a_second_identical_build_is_a_copy_in_any_bundle(bundle, another, cache, monkeypatch):
    first = build_into(bundle, ADA, cache=cache)
    monkeypatch.setattr(request, "build_engine", lambda *a, **k: pytest.fail("it was built again"))
    second = build_into(another, ADA, cache=cache)
    assert (first.cached, second.cached) == (False, True)
    assert second.report().sha256 == first.report().sha256
    assert second.variant == first.variant  # proof, options and the time of the build too
    opened = Bundle.open(another.root)
    assert opened.path(f"variants/{second.variant.name}/build.log").read_bytes()


@pytest.mark.parametrize(
    "changed",
    [
        {"precision": Precision.FP32},
        {"profiles": (BatchRange(1, 4, 8),)},
        {"targets": ["sm86"]},
        {"options": BuildOptions(workspace=2**31)},
        {"options": BuildOptions(opt_level=4)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_whatever_is_changed_is_a_miss(first, cache, changed):
    assert not build_into(first.bundle, replace(ADA, **changed), cache=cache).cached
    assert len(entries(cache)) == 2


def test_tf32_is_a_miss_behind_fp32(bundle, cache):
    plan = replace(ADA, precision=Precision.FP32)
    assert not build_into(bundle, plan, cache=cache).cached
    assert not build_into(bundle, replace(plan, precision=Precision.TF32), cache=cache).cached


def test_the_key_holds_library_gpu_driver_and_our_own_recipe(bundle, monkeypatch):
    asked = request.make_request(bundle, ADA)
    about, key = asked.about(), asked.key()
    assert about.keys() >= {"recipe", "onnx", "library", "version", "precision", "batch", "targets", "gpu"}
    monkeypatch.setattr(request, "RECIPE", request.RECIPE + 1)
    assert asked.key() != key


def test_cuda_graph_batches_do_not_change_the_bytes_and_are_no_miss(first, cache):
    again = build_into(first.bundle, replace(ADA, options=BuildOptions(graph_batches=(1,))), cache=cache)
    assert again.cached
    assert again.variant.build.graph_batches == (1,)


def test_no_cache_neither_finds_nor_keeps(bundle, cache):
    build_into(bundle, ADA)
    assert not cache.home.exists()


@pytest.mark.parametrize("damage", ["engine", "engine gone", "entry", "entry of another", "log gone"])
def test_a_damaged_entry_is_built_anew(first, bundle, another, cache, damage):
    [entry] = entries(cache)
    data = bytearray((entry / ENGINE).read_bytes())
    data[len(data) // 2] ^= 1
    (entry / ENGINE).unlink()  # it may be the bundle's own file, linked
    if damage != "engine gone":
        (entry / ENGINE).write_bytes(data if damage == "engine" else (bundle.root / first.variant.path).read_bytes())
    if damage == "entry":
        (entry / ENTRY).write_bytes(b"{")
    if damage == "entry of another":
        text = (entry / ENTRY).read_text().replace(entry.name, "0" * 64)
        (entry / ENTRY).write_text(text)
    if damage == "log gone":
        (entry / "build.log").unlink()
    again = build_into(another, ADA, cache=cache)
    assert not again.cached
    assert again.report().sha256 == first.report().sha256
    assert build_into(again.bundle, ADA, cache=cache).cached


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("what", ["engines", "entry", ENGINE, ENTRY])
def test_an_altered_engine_of_another_user_is_not_copied(first, another, cache, what, attack):
    """Its entry names the altered bytes: only the owner and the mode tell that somebody else wrote them."""
    [entry] = entries(cache)
    data = (entry / ENGINE).read_bytes() + b"altered"
    (entry / ENGINE).unlink()  # it may be the bundle's own file, linked
    (entry / ENGINE).write_bytes(data)
    text = (entry / ENTRY).read_text().replace(first.report().sha256, hashlib.sha256(data).hexdigest())
    (entry / ENTRY).write_text(text)
    ATTACKS[attack]({"engines": cache.home, "entry": entry}.get(what, entry / what))
    again = build_into(another, ADA, cache=cache)
    assert not again.cached
    assert again.report().sha256 == first.report().sha256


def test_the_entry_of_another_onnx_under_this_key_is_built_anew(first, another, cache):
    """Its hashes are right, and its key is mended: what it was made of is not what is asked for."""
    [entry] = entries(cache)
    about = json.loads((entry / ENTRY).read_text())
    about["about"]["onnx"] = "0" * 64
    (entry / ENTRY).write_text(json.dumps(about))
    again = build_into(another, ADA, cache=cache)
    assert not again.cached
    assert again.report().sha256 == first.report().sha256


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_refused_engine_is_named_with_its_owner_and_mode_and_the_build_goes_on(first, another, cache, attack, caplog):
    [entry] = entries(cache)
    (entry / ENGINE).write_bytes((entry / ENGINE).read_bytes())
    ATTACKS[attack](cache.home)
    for _ in range(2):
        assert not build_into(another, ADA, cache=cache).cached
    told = [r.message for r in caplog.records if "another user may write" in r.message]
    assert len(told) == (attack != "a link")
    if told:
        about = cache.home.stat()
        owner = {0: "root", 65534: "nobody"}.get(about.st_uid, "")
        assert f"it belongs to {owner}" in told[0] and f"its mode is {about.st_mode & 0o7777:04o}" in told[0]


@pytest.mark.parametrize("swap", SWAPS)
def test_an_onnx_file_that_is_swapped_when_the_library_parses_it_is_built_as_it_was(bundle, another, swap, monkeypatch):
    first = build_into(bundle, ADA)
    onnx = another.path(another.manifest.variant("onnx-fp16").path)
    calls = swap_before(monkeypatch, request, "build_engine", lambda: SWAPS[swap](onnx))
    assert build_into(another, ADA).report().sha256 == first.report().sha256
    assert calls


def test_a_failed_build_leaves_nothing(bundle, cache):
    with pytest.raises(BuildError):
        build_into(bundle, replace(ADA, options=BuildOptions(workspace=70_000)), cache=cache)
    assert [path.suffix for path in cache.home.iterdir()] == [".lock"]


def test_the_least_recently_used_go_first_and_the_newest_stays(bundle, cache, cache_home):
    targets = ["sm80", "sm86", "sm89"]
    for target in targets:
        bundle = build_into(bundle, BuildPlan(engine="rtx", targets=[target]), cache=cache).bundle
    build_into(bundle, BuildPlan(engine="rtx", targets=["sm80"]), cache=cache)  # used again: now sm86 is the oldest
    size = max(sum(f.stat().st_size for f in e.iterdir()) for e in entries(cache))
    small = EngineCache(limit=5 * size // 2)
    build_into(bundle, BuildPlan(engine="rtx", targets=["sm120"]), cache=small)
    kept = {json.loads((entry / ENTRY).read_text())["about"]["targets"] for entry in entries(cache)}
    assert kept == {"sm80", "sm120"}
    assert len(list(cache.home.glob("*.lock"))) == 2
    EngineCache(limit=0).trim()
    assert not entries(cache)


def test_an_entry_in_use_is_not_evicted(first, cache):
    [entry] = entries(cache)
    about = json.loads((entry / ENTRY).read_text())["about"]
    with cache.engine(entry.name, about, lambda target: pytest.fail("it is there")) as made:
        subprocess.run(
            [sys.executable, "-c", "from vggdeploy.build.cache import EngineCache; EngineCache(limit=0).trim()"],
            check=True,
        )
        assert made.path.is_file()


def test_a_cache_that_cannot_be_written_is_no_reason_not_to_build(bundle, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "file"))
    assert not build_into(bundle, ADA, cache=EngineCache()).cached


def test_a_copy_is_a_file_of_its_own_name_with_the_same_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"bytes")
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"bytes"
    with pytest.raises(FileExistsError):
        copy_file(tmp_path / "a", tmp_path / "b")


# Processes

BUILD = """
import sys
from pathlib import Path
from vggdeploy.build.cache import EngineCache
from vggdeploy.build.engines import build_into
from vggdeploy.build.request import BuildPlan
from vggdeploy.bundle import Bundle
Path(sys.argv[2]).touch()
while not Path(sys.argv[3]).exists():
    pass
added = build_into(Bundle.open(sys.argv[1]), BuildPlan("rtx", targets=["ada"]), cache=EngineCache())
print(added.cached, added.report().sha256)
"""


def start(bundle: Bundle, ready: Path, go: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, bundle.root, ready, go], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(*files: Path) -> None:
    end = time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_of_three_processes_one_builds_and_the_others_copy(tmp_path, onnx_files, cache):
    bundles = [write_bundle(tmp_path / f"b{i}", {p: onnx_files[p] for p in KINDS}) for i in range(3)]
    ready, go = [tmp_path / f"ready{i}" for i in range(3)], tmp_path / "go"
    running = [start(bundle, file, go) for bundle, file in zip(bundles, ready, strict=True)]
    wait_for(*ready)
    go.touch()
    told = []
    for process in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        told.append(out.split())
    assert sorted(cached for cached, _ in told) == ["False", "True", "True"]
    assert len({sha256 for _, sha256 in told}) == 1
    for bundle in bundles:
        Bundle.open(bundle.root)
    assert len(entries(cache)) == 1


def test_a_builder_that_is_killed_holds_up_nobody(bundle, another, cache, tmp_path):
    """It is stopped while it holds the lock, with a draft on the disk; another waits, and builds when it is killed."""
    code = BUILD.replace(
        "added =",
        "import os, signal\nfrom vggdeploy.build import cache\n"
        "cache.build_entry = lambda d, *a: (d / 'model.engine').touch() or os.kill(os.getpid(), signal.SIGSTOP)\nadded =",
    )
    killed = subprocess.Popen([sys.executable, "-c", code, bundle.root, tmp_path / "r1", __file__])
    end = time.monotonic() + 60
    while not list(cache.home.glob(f".*/{ENGINE}")):
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    waiting = start(another, tmp_path / "r2", Path(__file__))
    wait_for(tmp_path / "r2")
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1.5)  # it waits for the lock
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    assert out.split()[0] == "False"
    assert not list(cache.home.glob(".*"))
