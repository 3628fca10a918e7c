"""A fork after `load`: the child is told, for every library, and never waits for threads that only its parent has."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vggdeploy
from vggdeploy import Engine, VggdeployError
from vggdeploy.data.loaders import ImageSet
from vggdeploy.errors import IncompatibleError
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.system.forks import Birthplace, SharedThreads

VARIANTS = ["onnx-fp32", "openvino-fp32", "torchscript-fp32", "torch-fp32"]

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture(scope="module")
def all_backends(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    path = tmp_path_factory.mktemp("forks") / "bundle"
    formats = ["onnx-fp32", "torchscript-fp32", "openvino-fp32"]
    export_bundle(checkpoint, path, ExportOptions(formats=formats, samples=20))
    return path


def in_child(work: Callable[[], str], *, limit: float = 60.0) -> str:
    """What ``work`` says in a forked child; "hangs" when it says nothing in ``limit`` seconds."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        said = "dies"
        try:
            said = work()
        except VggdeployError as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answered = select.select([pipe], [], [], limit)[0]
        if not answered:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return pipe.read().decode() if answered else "hangs"


def label(engine: Engine, batch: np.ndarray) -> str:
    return str(engine.run_prepared(batch)["logits"].argmax())


@pytest.fixture
def batch(digits_test: ImageSet) -> np.ndarray:
    return np.ascontiguousarray(digits_test.images[:32])  # large enough that a library shares it out over its threads


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_engine_that_was_loaded_before_a_fork_says_so_in_the_child(
    variant: str, all_backends: Path, batch: np.ndarray
) -> None:
    with vggdeploy.load(all_backends, variant=variant, threads=2) as engine:
        expected = label(engine, batch)

        def use_all_of_it() -> str:
            for call in (lambda: label(engine, batch), engine.reload, lambda: engine._session.run({})):
                with pytest.raises(IncompatibleError, match="before this process was forked") as caught:
                    call()
                assert "spawn" in caught.value.hint
            engine._session.__exit__(None, None, None)
            engine.close()
            return "told"

        assert in_child(use_all_of_it) == "told"
        assert label(engine, batch) == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_engine_that_is_loaded_after_a_fork_answers_or_says_why_not(
    variant: str, all_backends: Path, batch: np.ndarray
) -> None:
    """The parent has computed with the same library on two threads."""

    def loaded(threads: int) -> str:
        with vggdeploy.load(all_backends, variant=variant, threads=threads) as engine:
            return label(engine, batch)

    expected = loaded(2)
    if variant == "onnx-fp32":  # each session has threads of its own
        assert in_child(lambda: loaded(2)) == expected
        return
    lost = (
        "IncompatibleError: "
        + ("OpenVINO" if variant == "openvino-fp32" else "PyTorch")
        + " computed with threads before"
    )
    assert in_child(lambda: loaded(2)).startswith(lost)
    assert in_child(lambda: in_child(lambda: loaded(2))).startswith(lost)
    if variant != "openvino-fp32":
        assert in_child(lambda: loaded(1)) == expected


def test_a_child_of_a_parent_that_computed_nothing_may_use_every_thread() -> None:
    threads = SharedThreads("this library", remedy="do without")

    def take() -> str:
        threads.take()
        return "taken"

    assert in_child(take) == "taken"
    assert take() == take() == "taken"
    assert "spawn" in in_child(take)


def test_a_birthplace_is_the_process() -> None:
    place = Birthplace()
    place.check("this", again="open it")
    assert place.here
    assert in_child(lambda: str(place.here)) == "False"
