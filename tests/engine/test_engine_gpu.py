"""`Engine` on a GPU: batches under way, streams and arrays on the GPU, through reloads; and what says so elsewhere."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fakes.gpu import CLASSES, ILLEGAL_ADDRESS, H, W, expected, pixels

import vggdeploy
from vggdeploy import Engine, IncompatibleError, InputError, UsageError, VggdeployError
from vggdeploy.bundle import Bundle
from vggdeploy.engine.loading import OpenVariant
from vggdeploy.runtime import CheckedSession, Session
from vggdeploy.runtime.gpu.device_arrays import DeviceArray
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.system.forks import Birthplace
from vggdeploy.types import BatchRange, Device

if TYPE_CHECKING:
    from fakes.gpu import Cudart, Library


@pytest.fixture
def opened(gpu: Callable[..., Any], source: Any, bundle: Bundle) -> Callable[[], OpenVariant]:
    """Opens an engine of the fake library, under the name of a variant of a real bundle."""
    gpu()

    def opened() -> OpenVariant:
        session = CheckedSession(EngineSession(source), name="tensorrt-fp16", batch=BatchRange(1, 2, 4))
        return OpenVariant(bundle, bundle.manifest.variants[0], session.__enter__(), Device("cuda"))

    return opened


@pytest.fixture
def fakes(gpu: Callable[..., tuple[Cudart, Library]], opened: object) -> tuple[Cudart, Library]:
    """The fake CUDA runtime and library that the engine is opened on."""
    return gpu()


@pytest.fixture
def engine(fakes: object, opened: Callable[[], OpenVariant]) -> Iterator[Engine]:
    with Engine(opened()) as engine:
        yield engine


def test_a_batch_that_was_started_is_answered_later_and_counted_once(engine: Engine) -> None:
    images = [pixels(1 + seed % 4, seed) for seed in range(9)]
    handles = [engine.run_async({"image": image}) for image in images]
    assert engine.health().active == 9
    for image, handle in zip(images, handles, strict=True):
        for _ in range(2):
            np.testing.assert_array_equal(handle.result()["logits"], expected(image))
    assert (engine.health().active, engine.health().answered, engine.health().failed) == (0, 9, 0)


def test_a_batch_under_way_keeps_its_variant_open_through_a_reload(
    fakes: tuple[Cudart, Library], opened: Callable[[], OpenVariant]
) -> None:
    _, library = fakes
    image = pixels(3)
    with Engine(opened()) as engine:
        handle = engine.run_async({"image": image})
        stream = engine.stream([{"image": image}] * 5)
        next(stream)
        engine._holder.replace(opened())
        assert library.alive.count("engine") == 2
        np.testing.assert_array_equal(handle.result()["logits"], expected(image))
        assert [answer["logits"].tolist() for answer in stream] == [expected(image).tolist()] * 4
        assert library.alive.count("engine") == 1
    assert not library.alive


@pytest.mark.parametrize("end", ["result", "dropped"])
def test_a_batch_under_way_when_its_engine_is_closed_is_answered_and_then_all_is_freed(
    fakes: tuple[Cudart, Library], opened: Callable[[], OpenVariant], end: str
) -> None:
    cudart, library = fakes
    image = pixels(2)
    engine = Engine(opened())
    handle = engine.run_async({"image": image})
    engine.close()
    for start in (engine.run, engine.run_async):
        with pytest.raises(VggdeployError, match="closed"):
            start({"image": image})
    if end == "result":
        np.testing.assert_array_equal(handle.result()["logits"], expected(image))
    else:
        del handle
        gc.collect()
        engine.close()  # what was dropped goes with the next call, whichever it is
    assert not library.alive and not cudart.alive


@pytest.mark.parametrize("how", ["handle", "stream"])
def test_what_nobody_waits_for_any_more_is_given_back_with_the_next_request(
    fakes: tuple[Cudart, Library], opened: Callable[[], OpenVariant], how: str
) -> None:
    _, library = fakes
    feeds = {"image": pixels(2)}
    with Engine(opened()) as engine:
        kept: list[Any] = [engine.run_async(feeds)] if how == "handle" else [engine.stream([feeds] * 9)]
        if how == "stream":
            next(kept[0])
        kept.append(kept)  # a cycle: only the garbage collector lets go of it
        engine._holder.replace(opened())
        del kept
        gc.collect()
        np.testing.assert_array_equal(engine.run(feeds)["logits"], expected(feeds["image"]))
        assert library.alive.count("engine") == 1
        health = engine.health()
        assert (health.active, health.answered, health.failed) == (0, 1, 0)
    assert not library.alive


def test_a_collection_while_the_engine_s_lock_is_held_does_not_wait_for_it(engine: Engine) -> None:
    handle, stream = engine.run_async({"image": pixels(2)}), engine.stream([{"image": pixels(2)}] * 3)
    next(stream)
    with engine._holder._lock:
        del handle, stream
        gc.collect()  # it would stand still for ever here
    assert engine.health().active == 0


def test_a_batch_that_fails_is_one_failure_of_the_engine(engine: Engine, fakes: tuple[Cudart, Library]) -> None:
    cudart, _ = fakes
    handle = engine.run_async({"image": pixels(2)})
    cudart.fail_at, cudart.error = "cudaStreamSynchronize", ILLEGAL_ADDRESS
    for _ in range(2):
        with pytest.raises(VggdeployError, match="cudaStreamSynchronize failed"):
            handle.result()
    cudart.fail_at = None
    health = engine.health()
    assert (health.ok, health.active, health.failed) == (False, 0, 1)
    engine.run({"image": pixels(1)})
    assert engine.health().ok


def test_ctrl_c_while_a_batch_is_waited_for_leaves_it_under_way(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pixels(2)
    handle = engine.run_async({"image": image})
    with monkeypatch.context() as patch:

        def interrupted(self: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("vggdeploy.runtime.gpu.pool.Pending.result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            handle.result()
    assert engine.health().active == 1
    np.testing.assert_array_equal(handle.result()["logits"], expected(image))
    assert engine.health().active == 0


def test_a_wrong_batch_starts_nothing(engine: Engine) -> None:
    for start in (engine.run_async, lambda feeds: next(engine.stream([feeds]))):
        with pytest.raises(InputError, match="outside 1…4"):
            start({"image": pixels(5)})
    with pytest.raises(UsageError, match="cannot be 0"):
        next(engine.stream([], depth=0))
    health = engine.health()
    assert (health.ok, health.active, health.failed) == (True, 0, 0)


def test_a_stream_keeps_its_order_and_reads_ahead_by_its_depth(engine: Engine) -> None:
    images = [pixels(1 + seed % 4, seed) for seed in range(8)]
    asked: list[int] = []

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for number, image in enumerate(images):
            asked.append(number)
            yield {"image": image}

    for number, answer in enumerate(engine.stream(batches(), depth=3)):
        np.testing.assert_array_equal(answer["logits"], expected(images[number]))
        assert asked[-1] == min(number + 2, len(images) - 1)
    assert engine.health().answered == 1


def test_arrays_on_the_gpu_go_in_and_out(engine: Engine, fakes: tuple[Cudart, Library]) -> None:
    from fakes.gpu import view

    cudart, _ = fakes
    image = pixels(3)
    given = DeviceArray((3, H, W, 3), "uint8", Device("cuda"))
    view(given.address, image.nbytes, np.uint8)[:] = image.reshape(-1)
    made = engine.run_on_device({"image": given})["logits"]
    np.testing.assert_array_equal(made.numpy(), expected(image))
    target = DeviceArray((3, CLASSES), "float32", Device("cuda"))
    out = engine.run_on_device({"image": given}, out={"logits": target})
    assert out["logits"] is target
    np.testing.assert_array_equal(target.numpy(), expected(image))
    assert "cudaMemcpyAsync" not in cudart.calls
    with pytest.raises(InputError, match="not in CUDA memory"):
        engine.run_on_device({"image": image})
    assert engine.health().answered == 2


def test_a_handle_in_a_forked_child_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = engine.run_async({"image": pixels(1)})
    elsewhere = Birthplace()
    monkeypatch.setattr(elsewhere, "_process", -1)
    with monkeypatch.context() as patch:
        patch.setattr(engine._holder, "_birthplace", elsewhere)
        with pytest.raises(IncompatibleError, match="fork"):
            handle.result()
    handle.result()


def test_on_a_cpu_the_answer_is_a_remedy_and_a_stream_runs_one_after_the_other(bundle_dir: Path) -> None:
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as engine:
        inputs, _ = engine.bundle.golden()
        for method in (engine.run_async, engine.run_on_device):
            with pytest.raises(
                IncompatibleError, match=f"onnx-fp32 has no {method.__name__} on this backend"
            ) as caught:
                method(inputs)
            assert "run()" in caught.value.hint
            assert caught.value.exit_code == 5
        wanted = engine.run(inputs)["logits"]
        answers = [answer["logits"] for answer in engine.stream([inputs, inputs])]
        for answer in answers:
            np.testing.assert_array_equal(answer, wanted)
        assert engine.health().active == 0


def test_the_engine_has_what_a_session_on_a_gpu_has() -> None:
    """The two say the same of it: names and parameters."""
    import inspect

    for name in ("run_async", "stream", "run_on_device"):
        theirs = inspect.signature(getattr(CheckedSession, name))
        assert inspect.signature(getattr(Engine, name)).parameters == theirs.parameters
    assert not hasattr(Session, "run_async")
