"""Arrays as applications have them: read-only, strided, out of line, of another byte order, on every backend for CPUs."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import vggdeploy
from vggdeploy import AsyncEngine, Engine, InputError
from vggdeploy.bundle import Bundle
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.preprocess import normalise

pytest.importorskip("openvino")

BACKENDS = ("onnxruntime", "openvino", "torch", "torchscript")
FORMATS = ("onnx-fp32", "torchscript-fp32", "openvino-fp32")
TOLERANCE = 1e-4
ROWS = 3


def read_only(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)


def out_of_line(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Read-only, at an address that no number of this size should have: what follows a header of odd length."""
    found = np.frombuffer(memoryview(b"!" + array.tobytes())[1:], array.dtype).reshape(array.shape)
    assert array.itemsize == 1 or not found.flags.aligned
    return found


def every_second(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.repeat(array, 2, axis=0)[::2]


def backwards(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.ascontiguousarray(array[:, ::-1])[:, ::-1]


def turned(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.asfortranarray(array)


def broadcast(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """One image three times, without memory of its own; NumPy makes it read-only."""
    return np.broadcast_to(array[:1], array.shape)


LAYOUTS = (read_only, out_of_line, every_second, backwards, turned, broadcast)


@pytest.fixture(scope="module")
def uint8_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arrays") / "uint8"
    export_bundle(checkpoint, path, ExportOptions(formats=list(FORMATS), samples=8))
    return path


@pytest.fixture(scope="module")
def float32_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arrays") / "float32"
    export_bundle(checkpoint, path, ExportOptions(formats=list(FORMATS), samples=8, input_dtype="float32"))
    return path


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["uint8", "float32"])
def engine(request: pytest.FixtureRequest, backend: str) -> Iterator[Engine]:
    with vggdeploy.load(request.getfixturevalue(f"{request.param}_bundle"), backend=backend) as opened:
        yield opened


@pytest.fixture
def batch(engine: Engine, uint8_bundle: Path) -> NDArray[np.generic]:
    """What the graph takes."""
    images = pixels(uint8_bundle)
    manifest = engine.bundle.manifest
    return images if manifest.input.dtype == "uint8" else normalise(images, manifest.preprocess)


def again(engine: Engine) -> Engine:
    """Another one on the same variant: an `AsyncEngine` closes the one that it is given."""
    return vggdeploy.load(engine.bundle.root, variant=engine.health().variant)


def pixels(bundle: Path) -> NDArray[np.uint8]:
    return np.array(Bundle.open(bundle).golden()[0]["image"][:ROWS])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_run_takes_an_array_however_it_lies_in_memory_and_leaves_it_alone(
    engine: Engine, batch: NDArray[np.generic], layout: Callable[[NDArray[np.generic]], NDArray[np.generic]]
) -> None:
    given = layout(batch)
    plain = np.array(given)
    expected = engine.run({"image": plain})["logits"]
    np.testing.assert_allclose(engine.run({"image": given})["logits"], expected, atol=TOLERANCE)
    np.testing.assert_array_equal(given, plain)


def test_the_async_engine_takes_all_of_them(engine: Engine, batch: NDArray[np.generic]) -> None:
    async def ask(arrays: list[NDArray[np.generic]]) -> list[dict[str, NDArray[np.float32]]]:
        async with AsyncEngine(again(engine)) as many:
            return [await many.run({"image": given}) for given in arrays]

    arrays = [layout(batch) for layout in LAYOUTS]
    for given, found in zip(arrays, asyncio.run(ask(arrays)), strict=True):
        expected = engine.run({"image": np.array(given)})["logits"]
        np.testing.assert_allclose(found["logits"], expected, atol=TOLERANCE)


def test_no_backend_writes_into_what_it_was_given(engine: Engine, batch: NDArray[np.generic]) -> None:
    before = batch.copy()
    first = engine.run({"image": batch})["logits"].copy()
    np.testing.assert_array_equal(batch, before)
    np.testing.assert_allclose(engine.run({"image": batch})["logits"], first, atol=TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_classify_takes_images_that_lie_anyhow(
    engine: Engine, uint8_bundle: Path, layout: Callable[[NDArray[np.generic]], NDArray[np.generic]]
) -> None:
    given = layout(pixels(uint8_bundle))
    expected = [[p.label for p in row] for row in engine.classify(np.array(given))]
    assert [[p.label for p in row] for row in engine.classify(given)] == expected
    assert [p.label for p in engine.classify(given[0])] == expected[0]


def test_an_image_file_is_classified_alone_and_by_the_async_engine(engine: Engine, uint8_bundle: Path) -> None:
    image = pixels(uint8_bundle)[0, ..., 0]
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")

    async def ask() -> list[vggdeploy.Prediction]:
        async with AsyncEngine(again(engine)) as many:
            return await many.classify(file.getvalue())

    labels = [p.label for p in engine.classify(image)]
    assert [p.label for p in engine.classify(file.getvalue())] == labels
    assert [p.label for p in asyncio.run(ask())] == labels


def test_numbers_of_another_byte_order_are_refused_with_what_to_type(
    float32_bundle: Path, uint8_bundle: Path, backend: str
) -> None:
    with vggdeploy.load(float32_bundle, backend=backend) as engine:
        batch = normalise(pixels(uint8_bundle), engine.bundle.manifest.preprocess)
        swapped = batch.astype(batch.dtype.newbyteorder())
        with pytest.raises(InputError, match=r"\.astype\('float32'\)") as caught:
            engine.run({"image": swapped})
        assert "byte order" in caught.value.cause
        expected = engine.run({"image": batch})["logits"]
        found = engine.run({"image": swapped.astype("float32")})["logits"]
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
