"""A bundle is replaced under load: no request is lost, each is answered by one bundle, a bad one never gets in."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import vggdeploy
from vggdeploy import (
    AsyncEngine,
    AsyncLimits,
    BundleError,
    Engine,
    IntegrityError,
    ParityError,
    UsageError,
    VggdeployError,
)
from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.engine import engine as engine_module
from vggdeploy.engine import loading
from vggdeploy.types import BatchRange


@pytest.fixture
def other(bundle_dir: Path, tmp_path: Path) -> Path:
    """A bundle of the same model whose labels differ: an answer shows which of the two gave it."""
    path = tmp_path / "other"
    shutil.copytree(bundle_dir, path)
    opened = Bundle.open(path)
    with update_bundle(opened) as draft:
        labels = tuple(f"new {label}" for label in opened.manifest.labels)
        draft.manifest = msgspec.structs.replace(opened.manifest, labels=labels)
    return path


@pytest.fixture
def engine(bundle_dir: Path) -> Iterator[Engine]:
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as opened:
        yield opened


def test_requests_go_on_through_reloads_and_each_is_answered_by_one_bundle(
    engine: Engine, bundle_dir: Path, other: Path, digit_png: Path
) -> None:
    stop = threading.Event()
    wrong: list[object] = []
    answered = [0] * 4

    def work(worker: int) -> None:
        while not stop.is_set():
            try:
                labels = {p.label.startswith("new ") for p in engine.classify(digit_png)}
                if len(labels) != 1:
                    wrong.append(labels)
            except Exception as error:
                wrong.append(error)
            answered[worker] += 1

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for target in (other, bundle_dir, other):
        before = list(answered)
        engine.reload(target)
        while any(now <= then for now, then in zip(answered, before, strict=True)):
            pass
    stop.set()
    for worker in workers:
        worker.join()
    assert not wrong
    assert engine.health().reloads == 3
    assert engine.health().answered == sum(answered)
    assert engine.classify(digit_png)[0].label == f"new {digit_png.stem}"


def test_the_old_one_is_freed_when_its_last_request_is_done(engine: Engine, other: Path) -> None:
    old = weakref.ref(engine._session)
    held = engine.hold()
    engine.reload(other)
    gc.collect()
    feeds = {"image": np.zeros((1, 32, 32, 1), np.uint8)}
    assert held.opened.session.run(feeds)["logits"].shape == (1, 10)  # still open for who had it
    session = held.opened.session
    engine.release(held)
    with pytest.raises(VggdeployError, match="closed"):
        session.run(feeds)
    del held, session
    gc.collect()
    assert old() is None


def test_a_bundle_that_misses_its_golden_pair_never_answers(engine: Engine, other: Path, digit_png: Path) -> None:
    opened = Bundle.open(other)
    outputs = opened.golden()[1]
    with update_bundle(opened) as draft:
        draft.save_arrays("golden/outputs", {"logits": outputs["logits"] + 5})
    with pytest.raises(ParityError):
        engine.reload(other)
    assert engine.classify(digit_png)[0].label == digit_png.stem
    assert engine.health().ok
    assert engine.health().reloads == 0


def test_a_damaged_or_missing_bundle_changes_nothing(
    engine: Engine, other: Path, digit_png: Path, tmp_path: Path
) -> None:
    with (other / Bundle.open(other).manifest.variant("onnx-fp32").path).open("r+b") as file:
        file.write(b"rot")
    with pytest.raises(IntegrityError):
        engine.reload(other)
    with pytest.raises(BundleError):
        engine.reload(tmp_path / "nowhere")
    assert engine.classify(digit_png)[0].label == digit_png.stem


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a priority belongs to the whole process")
def test_the_new_one_is_proven_behind_the_requests_and_then_answers_with_the_priority_of_the_old_one(
    bundle_dir: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nice(thread: int) -> int:
        try:
            return os.getpriority(os.PRIO_PROCESS, thread)
        except ProcessLookupError:  # it has ended
            return nice(0)

    found: list[int] = []
    for module, name in ((loading, "prove_at_load"), (engine_module, "run_batch")):
        real = getattr(module, name)
        seen = functools.partial(lambda real, *given, **named: (found.append(nice(0)), real(*given, **named))[1], real)
        monkeypatch.setattr(module, name, seen)
    with vggdeploy.load(bundle_dir, variant="onnx-fp32", threads=2) as engine:
        engine.warm_up([4])
        mine = nice(0)
        found.clear()
        before = set(Path("/proc/self/task").iterdir())
        engine.reload(other)
        assert found == [10, 10]  # the golden pair, the warm-up
        end = time.monotonic() + 20
        while 10 in (born := [nice(int(t.name)) for t in set(Path("/proc/self/task").iterdir()) - before]):
            assert time.monotonic() < end  # Python has joined a thread a moment before it has gone
        assert set(born) == {mine} == {nice(0)}  # the pool of the new session, and this thread


def test_a_bundle_that_takes_smaller_batches_than_are_served_is_refused(
    engine: Engine, other: Path, digit_png: Path
) -> None:
    opened = Bundle.open(other)
    small = msgspec.structs.replace(opened.manifest.variant("onnx-fp32"), batch=BatchRange(min=1, opt=2, max=2))
    with update_bundle(opened) as draft:
        draft.manifest = opened.manifest.with_variants(small)
    engine.warm_up([1, 4])
    with pytest.raises(UsageError, match="a batch of 4"):
        engine.reload(other)
    assert engine.classify(digit_png)[0].label == digit_png.stem


def test_without_a_path_it_takes_what_now_stands_there(
    bundle_dir: Path, other: Path, digit_png: Path, tmp_path: Path
) -> None:
    home = tmp_path / "served"
    shutil.copytree(bundle_dir, home)
    with vggdeploy.load(home, variant="onnx-fp32") as engine:
        shutil.rmtree(home)
        shutil.copytree(other, home)
        engine.reload()
        assert engine.classify(digit_png)[0].label == f"new {digit_png.stem}"


def test_a_closed_engine_is_not_reloaded(bundle_dir: Path, other: Path) -> None:
    engine = vggdeploy.load(bundle_dir, variant="onnx-fp32")
    engine.close()
    with pytest.raises(VggdeployError, match="closed"):
        engine.reload(other)


def test_an_async_engine_loses_nothing_either(bundle_dir: Path, other: Path, digit_png: Path) -> None:
    async def main() -> set[bool]:
        async with AsyncEngine(vggdeploy.load(bundle_dir, variant="onnx-fp32"), AsyncLimits(max_batch=8)) as many:
            seen: set[bool] = set()
            reload = asyncio.create_task(many.reload(other))
            while len(seen) < 2:
                for answer in await asyncio.gather(*(many.classify(digit_png) for _ in range(20))):
                    labels = {p.label.startswith("new ") for p in answer}
                    assert len(labels) == 1
                    seen |= labels
            await reload
            health = many.health()
            assert (health.failed, health.active) == (0, 0)
            return seen

    assert asyncio.run(asyncio.wait_for(main(), 30)) == {False, True}
