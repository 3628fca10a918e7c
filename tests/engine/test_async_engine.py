"""Many callers on one engine, with ONNX Runtime: the same answers, each failing alone, bounded, cancellable."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vggdeploy
from vggdeploy import (
    AsyncEngine,
    AsyncLimits,
    DeadlineError,
    Engine,
    InputError,
    Overloaded,
    UsageError,
    VggdeployError,
)
from vggdeploy.bundle import Bundle
from vggdeploy.data.loaders import ImageSet
from vggdeploy.engine.microbatch import BatchDone

# A batch of another size takes other kernels, which add up in another order. Seen here: 4e-6 on logits of up to 20.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def engine(bundle_dir: Path) -> Iterator[Engine]:
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as opened:
        yield opened


@pytest.fixture
def slow_engine(bundle_dir: Path) -> Iterator[tuple[Engine, threading.Event]]:
    """An engine whose session waits for a gate: a fault injected below the real one."""
    opened = vggdeploy.load(bundle_dir, variant="onnx-fp32")
    gate = threading.Event()
    session = opened._session
    real = session.run
    session.run = lambda feeds: (gate.wait(20), real(feeds))[1]  # type: ignore[method-assign]
    yield opened, gate
    gate.set()
    opened.close()


def pictures(digits: ImageSet, count: int) -> list[np.ndarray]:
    return [np.asarray(image[..., 0]) for image in digits.images[:count]]


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_many_at_once_are_answered_as_one_by_one_in_few_batches(bundle_dir: Path, digits_test: ImageSet) -> None:
    images = pictures(digits_test, 200)
    done: list[BatchDone] = []

    async def main() -> list[list[vggdeploy.Prediction]]:
        engine = vggdeploy.load(bundle_dir, variant="onnx-fp32")
        async with AsyncEngine(engine, AsyncLimits(max_batch=16), on_batch=done.append) as many:
            return await asyncio.gather(*(many.classify(image, top=3) for image in images))

    found = asyncio.run(main())
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as engine:
        for image, answer in zip(images, found, strict=True):
            alone = engine.classify(image, top=3)
            assert [p.label for p in answer] == [p.label for p in alone]
            assert [p.probability for p in answer] == pytest.approx([p.probability for p in alone], abs=TOLERANCE)
    assert sum(batch.rows for batch in done) == len(images)
    assert max(batch.rows for batch in done) == 16
    assert len(done) < len(images) / 4


def test_raw_arrays_of_several_rows_come_back_to_who_sent_them(engine: Engine, bundle: Bundle) -> None:
    inputs, outputs = bundle.golden()
    rows = [inputs["image"][start : start + size] for start, size in ((0, 1), (1, 4), (5, 2), (0, 7))]
    expected = [outputs["logits"][start : start + size] for start, size in ((0, 1), (1, 4), (5, 2), (0, 7))]

    async def main() -> list[dict[str, np.ndarray]]:
        many = AsyncEngine(engine, AsyncLimits(max_batch=8), warm_up=False)
        return await asyncio.gather(*(many.run({"image": batch}) for batch in rows))

    for found, wanted in zip(asyncio.run(main()), expected, strict=True):
        assert np.allclose(found["logits"], wanted, atol=TOLERANCE)
        assert found["logits"].base is None or found["logits"].base.nbytes == found["logits"].nbytes


def test_bad_images_and_bad_arrays_fail_alone(engine: Engine, digits_test: ImageSet) -> None:
    good = pictures(digits_test, 6)

    async def main() -> list[object]:
        many = AsyncEngine(engine, warm_up=False)
        bad = [many.classify(b"no image"), many.classify("/nowhere.png"), many.classify(["list"])]  # type: ignore[arg-type]
        arrays = [many.run({"image": np.zeros((1, 5, 5, 1), np.uint8)}), many.run({"wrong": np.zeros(1)})]
        return await asyncio.gather(*(many.classify(g, top=1) for g in good), *bad, *arrays, return_exceptions=True)

    found = asyncio.run(main())
    assert [a[0].label for a in found[:6]] == [engine.classify(g, top=1)[0].label for g in good]  # type: ignore[index]
    assert all(isinstance(error, InputError) for error in found[6:])


def test_a_nan_fails_alone(float_bundle_dir: Path) -> None:
    async def main() -> list[object]:
        async with AsyncEngine(vggdeploy.load(float_bundle_dir), AsyncLimits(max_batch=4)) as many:
            batches = [np.full((1, 1, 32, 32), value, np.float32) for value in (0.5, np.nan, 0.5)]
            return await asyncio.gather(*(many.run({"image": b}) for b in batches), return_exceptions=True)

    first, bad, last = asyncio.run(main())
    assert isinstance(bad, InputError)
    assert "NaN" in bad.cause
    assert np.array_equal(first["logits"], last["logits"])  # type: ignore[index]


def test_an_answer_that_overflows_fails_alone(slow_engine: tuple[Engine, threading.Event], bundle: Bundle) -> None:
    engine, gate = slow_engine
    gate.set()
    inputs, outputs = bundle.golden()
    session, poison = engine._session, inputs["image"][2]
    real = session.run

    def overflowing(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if any(np.array_equal(row, poison) for row in feeds["image"]):
            raise VggdeployError("onnx-fp32 gave a NaN or infinity in 'logits'", "…")
        return real(feeds)

    session.run = overflowing  # type: ignore[method-assign]

    async def main() -> list[object]:
        many = AsyncEngine(engine, warm_up=False)
        return await asyncio.gather(
            *(many.run({"image": inputs["image"][i : i + 1]}) for i in range(5)), return_exceptions=True
        )

    found = asyncio.run(main())
    assert isinstance(found.pop(2), VggdeployError)
    kept = [0, 1, 3, 4]
    assert all(
        np.allclose(f["logits"][0], outputs["logits"][i], atol=TOLERANCE) for i, f in zip(kept, found, strict=True)
    )  # type: ignore[index]


def test_overload_is_answered_at_once_and_what_was_taken_is_answered(
    slow_engine: tuple[Engine, threading.Event], digits_test: ImageSet
) -> None:
    engine, gate = slow_engine
    image = pictures(digits_test, 1)[0]

    async def main() -> tuple[list[object], float]:
        many = AsyncEngine(engine, AsyncLimits(max_batch=2, queue=4), warm_up=False)
        asked = [asyncio.create_task(many.classify(image, top=1)) for _ in range(50)]
        started = time.perf_counter()
        while sum(task.done() for task in asked) < 50 - 2 - 4:
            await asyncio.sleep(0.01)
        waited = time.perf_counter() - started
        gate.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        await many.aclose()
        return found, waited

    found, waited = asyncio.run(main())
    refused = [f for f in found if isinstance(f, Overloaded)]
    assert 44 <= len(refused) <= 46
    assert all(isinstance(f, (list, Overloaded)) for f in found)
    assert waited < 2


def test_a_deadline_passes_in_time_and_what_had_not_started_is_not_computed(
    slow_engine: tuple[Engine, threading.Event], digits_test: ImageSet
) -> None:
    engine, gate = slow_engine
    image = pictures(digits_test, 1)[0]
    done: list[BatchDone] = []

    async def main() -> float:
        many = AsyncEngine(engine, AsyncLimits(max_batch=1), warm_up=False, on_batch=done.append)
        first = asyncio.create_task(many.classify(image))
        while many.waiting or not engine.health().active:  # until it is computed
            await asyncio.sleep(0.01)
        started = time.perf_counter()
        with pytest.raises(DeadlineError, match=r"within 0\.1 s"):
            await many.classify(image, timeout=0.1)
        waited = time.perf_counter() - started
        cancelled = asyncio.create_task(many.classify(image))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert many.waiting == 0
        gate.set()
        assert await first
        await many.aclose()
        return waited

    assert asyncio.run(main()) < 1
    assert len(done) == 1  # the first


def test_a_vector_of_one_image_is_the_engines(features_dir: Path, digits_test: ImageSet) -> None:
    image = pictures(digits_test, 1)[0]

    async def main() -> None:
        engine = vggdeploy.load(features_dir)
        async with AsyncEngine(engine, AsyncLimits(max_batch=4)) as many:
            assert np.allclose(await many.embed(image), engine.embed(image)[0], atol=TOLERANCE)
            pooled = await many.embed(image, output="relu2_1", pool="max", normalise=True)
            assert np.allclose(
                pooled, engine.embed(image, output="relu2_1", pool="max", normalise=True)[0], atol=TOLERANCE
            )
            with pytest.raises(UsageError, match="did you mean 'fc7'"):
                await many.embed(image, output="fc8")

    asyncio.run(main())


def test_several_event_loops_in_several_threads_share_it(engine: Engine, digits_test: ImageSet) -> None:
    images = pictures(digits_test, 30)
    many = AsyncEngine(engine, warm_up=False)

    def one_loop(_: int) -> list[str]:
        async def main() -> list[str]:
            found = await asyncio.gather(*(many.classify(image, top=1) for image in images))
            return [answer[0].label for answer in found]

        return asyncio.run(main())

    expected = [engine.classify(image, top=1)[0].label for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert all(found == expected for found in pool.map(one_loop, range(4)))


def test_the_event_loop_stays_free_while_images_are_decoded(engine: Engine) -> None:
    big = png(np.random.default_rng(0).integers(0, 255, (3000, 3000), dtype=np.uint8))

    started = time.perf_counter()
    engine.classify(big)
    on_the_loop = time.perf_counter() - started

    async def main() -> float:
        many = AsyncEngine(engine, AsyncLimits(decode_threads=1), warm_up=False)
        asked = [asyncio.create_task(many.classify(big)) for _ in range(5)]
        longest, last = 0.0, time.perf_counter()
        while not all(task.done() for task in asked):
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
        return longest

    assert asyncio.run(main()) < max(0.1, on_the_loop)  # of 5 times that


def test_the_time_is_split(engine: Engine, digit_png: Path) -> None:
    async def main() -> None:
        many = AsyncEngine(engine, warm_up=False)
        started = time.perf_counter()
        answer, best = await many.classified(digit_png, top=1)
        total = (time.perf_counter() - started) * 1e3
        assert answer.batch == 1
        assert min(answer.decode_ms, answer.queue_ms, answer.compute_ms) > 0
        assert answer.decode_ms + answer.queue_ms + answer.compute_ms <= total
        assert best[0].label == digit_png.stem

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_batch": 0}, "max_batch is 0"),
        ({"max_batch": 257}, "takes 256 at most"),
        ({"queue": 0}, "queue is 0"),
        ({"max_delay_ms": -1}, "max_delay_ms is -1"),
        ({"max_delay_ms": float("nan")}, "max_delay_ms is nan"),
        ({"timeout": 0}, "timeout is 0"),
        ({"decode_threads": 0}, "decode_threads is 0"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(engine: Engine, options: dict[str, float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        AsyncEngine(engine, AsyncLimits(**options))  # type: ignore[arg-type]


def test_closed_it_says_so_and_so_does_its_engine(bundle_dir: Path, digit_png: Path) -> None:
    async def main() -> None:
        engine = vggdeploy.load(bundle_dir, variant="onnx-fp32")
        many = AsyncEngine(engine, warm_up=False)
        await many.aclose()
        await many.aclose()
        for asked in (many.classify(digit_png), many.run({})):
            with pytest.raises(VggdeployError, match="closed"):
                await asked
        with pytest.raises(VggdeployError, match="closed"):
            engine.classify(digit_png)

    asyncio.run(main())


def test_a_variant_for_fixed_batches_is_served_too(slow_engine: tuple[Engine, threading.Event], bundle: Bundle) -> None:
    """On a GPU batches are filled up to a size that was warmed up: here the path of it, with the CPU's session."""
    engine, gate = slow_engine
    gate.set()
    inputs, outputs = bundle.golden()
    sizes: list[int] = []
    real = engine._session.run
    engine._session.run = lambda feeds: (sizes.append(len(feeds["image"])), real(feeds))[1]  # type: ignore[method-assign]

    async def main() -> list[dict[str, np.ndarray]]:
        many = AsyncEngine(engine, AsyncLimits(max_batch=6), warm_up=False)
        many._sizes = (1, 2, 4, 6)
        return [await many.run({"image": inputs["image"][:n]}) for n in (1, 3, 5, 6)]

    found = asyncio.run(main())
    assert sizes == [1, 4, 6, 6]
    assert all(np.allclose(f["logits"], outputs["logits"][: len(f["logits"])], atol=TOLERANCE) for f in found)
    assert [len(f["logits"]) for f in found] == [1, 3, 5, 6]
