"""One engine for many threads; threads and processes around it; several engines beside each other."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import vggdeploy
from vggdeploy import InputError, UsageError, VggdeployError
from vggdeploy.data.loaders import ImageSet


@pytest.mark.parametrize("variant", ["onnx-fp32", "onnx-fp16", "torchscript-fp32", "torch-fp32"])
def test_many_threads_get_what_one_gets_bit_for_bit(variant: str, bundle_dir: Path, digits_test: ImageSet) -> None:
    """Batches of every size from 1 to 5, each several times, from 16 threads at once."""
    batches = [np.ascontiguousarray(digits_test.images[n : n + 1 + n % 5]) for n in range(40)] * 3
    with vggdeploy.load(bundle_dir, variant=variant) as engine:
        alone = [engine.run_prepared(batch)["logits"] for batch in batches]
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda batch: engine.run_prepared(batch)["logits"], batches))
        assert engine.health().answered == 2 * len(batches)
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_threads_that_classify_and_embed_get_their_own_answers(features_dir: Path, digits_test: ImageSet) -> None:
    images = [np.asarray(image[..., 0]) for image in digits_test.images[:30]]
    with vggdeploy.load(features_dir) as engine:

        def both(image: np.ndarray) -> tuple[object, bytes]:
            return engine.classify(image), engine.embed(image).tobytes()

        alone = [both(image) for image in images]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(both, images)) == alone


def test_health_tells_a_failure_of_the_runtime_from_a_callers(bundle_dir: Path, digit_png: Path) -> None:
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as engine:
        engine.classify(digit_png)
        with pytest.raises(InputError):
            engine.classify(b"no image")
        found = engine.health()
        assert (found.ok, found.answered, found.failed, found.active) == (True, 1, 0, 0)
        assert found.digest == engine.bundle.manifest.digest
        real = engine._session.run

        def broken(feeds: object) -> dict[str, np.ndarray]:
            raise VggdeployError("the device is gone", "restart")

        engine._session.run = broken  # type: ignore[method-assign,assignment]
        with pytest.raises(VggdeployError):
            engine.classify(digit_png)
        assert (engine.health().ok, engine.health().failed) == (False, 1)
        assert "the device is gone" in engine.health().last_failure
        engine._session.run = real  # type: ignore[method-assign]
        engine.classify(digit_png)
        assert engine.health().ok
    assert not engine.health().ok


@pytest.mark.parametrize(
    ("variant", "expected"), [("torchscript-fp32", [4, 4, 2, 2, 1, 1]), ("onnx-fp32", [4])], ids=["by size", "any size"]
)
def test_warm_up_runs_what_will_be_served_and_refuses_what_cannot_be(
    bundle_dir: Path, variant: str, expected: list[int]
) -> None:
    with vggdeploy.load(bundle_dir, variant=variant) as engine:
        sizes: list[int] = []
        real = engine._session.run
        engine._session.run = lambda feeds: (sizes.append(len(feeds["image"])), real(feeds))[1]  # type: ignore[method-assign]
        engine.warm_up([1, 4, 2, 4])
        assert sizes == expected
        for size in (0, 257):
            with pytest.raises(UsageError, match=f"a batch of {size}"):
                engine.warm_up([1, size])


_SPAWNED = """
import multiprocessing, sys, vggdeploy

engine = None

def start(path):
    global engine
    engine = vggdeploy.load(path, variant="onnx-fp32", threads=1)

def label(image):
    return engine.classify(image, top=1)[0].label

if __name__ == "__main__":
    method, path, image = sys.argv[1:]
    context = multiprocessing.get_context(method)
    with context.Pool(2, initializer=start, initargs=(path,)) as pool:
        print(*pool.map(label, [image] * 6))
"""


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_each_process_of_a_pool_loads_its_own(method: str, bundle_dir: Path, digit_png: Path, tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(_SPAWNED)
    done = subprocess.run(
        [sys.executable, script, method, bundle_dir, digit_png], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.split() == [digit_png.stem] * 6


def test_several_engines_in_one_process_do_not_disturb_each_other(
    bundle_dir: Path, features_dir: Path, digits_test: ImageSet
) -> None:
    batch = np.ascontiguousarray(digits_test.images[:8])
    engines = [
        vggdeploy.load(path, variant=variant)
        for path, variant in ((bundle_dir, "onnx-fp32"), (bundle_dir, "torchscript-fp32"), (features_dir, "onnx-fp32"))
    ]
    alone = [engine.run_prepared(batch)["logits"] for engine in engines]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda n: engines[n % 3].run_prepared(batch)["logits"], range(90)))
    assert all(np.array_equal(logits, alone[n % 3]) for n, logits in enumerate(found))
    for engine in engines:
        engine.close()


def test_open_and_close_leave_no_thread_and_no_file(bundle_dir: Path, digit_png: Path) -> None:
    def threads_and_files() -> tuple[int, int]:
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    def once() -> None:
        with vggdeploy.load(bundle_dir, variant="onnx-fp32") as engine:
            engine.classify(digit_png)

    once()
    before = threads_and_files()
    for _ in range(5):
        once()
    assert threads_and_files() == before
