"""Embeddings: one vector an image, from the output that was meant, pooled and scaled as asked; and Gram matrices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggdeploy import InputError, UsageError
from vggdeploy.bundle import Bundle
from vggdeploy.data.loaders import ImageSet
from vggdeploy.engine.embedding import embedding, gram_matrix, unit_length
from vggdeploy.engine.engine import Engine
from vggdeploy.runtime import open_session
from vggdeploy.runtime.sessions import run_batch
from vggdeploy.types import BatchRange, TensorSpec


@pytest.fixture(scope="module")
def pictures(digits_test: ImageSet) -> list[np.ndarray]:
    return [np.asarray(image[..., 0]) for image in digits_test.images[:21]]


def raw(engine: Engine, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
    return engine.run({"image": np.stack(pictures)[..., None]})


def test_a_vector_is_the_graphs_output_in_the_order_of_the_images(engine: Engine, pictures: list[np.ndarray]) -> None:
    found = engine.embed(pictures)  # more than a batch of 8
    np.testing.assert_allclose(found, raw(engine, pictures)["fc7"], rtol=1e-4, atol=1e-5)
    assert (found.shape, found.dtype) == ((21, 128), np.float32)


@pytest.mark.parametrize("normalise", [False, True])
def test_maps_are_pooled_as_asked(engine: Engine, pictures: list[np.ndarray], normalise: bool) -> None:
    maps = raw(engine, pictures)["relu2_1"]
    expected = {"avg": maps.mean((2, 3)), "max": maps.max((2, 3)), "none": maps}
    for pool, values in expected.items():
        length = np.sqrt((values.reshape(21, -1) ** 2).sum(1)).reshape(-1, *[1] * (values.ndim - 1))
        found = engine.embed(pictures, output="relu2_1", pool=pool, normalise=normalise)
        np.testing.assert_allclose(found, values / length if normalise else values, rtol=1e-4, atol=1e-5)
        assert found.dtype == np.float32


def test_one_image_of_any_kind_is_one_row(engine: Engine, digit_png: Path) -> None:
    forms = [
        digit_png,
        str(digit_png),
        digit_png.read_bytes(),
        Image.open(digit_png),
        np.asarray(Image.open(digit_png)),
    ]
    rows = [engine.embed(form) for form in forms]
    assert rows[0].shape == (1, 128)
    assert all(np.array_equal(row, rows[0]) for row in rows)


def test_a_generator_streams_a_batch_at_a_time(engine: Engine, pictures: list[np.ndarray]) -> None:
    taken: list[int] = []
    seen_at_run: list[int] = []
    session = engine._session
    real = session.run

    def spy(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen_at_run.append(len(taken))
        return real(feeds)

    def images() -> Iterator[np.ndarray]:
        for number, picture in enumerate(pictures):
            taken.append(number)
            yield picture

    session.run = spy  # type: ignore[method-assign]
    try:
        found = engine.embed(images())
    finally:
        session.run = real  # type: ignore[method-assign]
    assert seen_at_run == [8, 16, 21]
    np.testing.assert_array_equal(found, engine.embed(pictures))


def test_a_generator_can_be_classified_too(engine: Engine, pictures: list[np.ndarray]) -> None:
    assert engine.classify(iter(pictures), top=1) == engine.classify(pictures, top=1)


def test_no_image_is_no_row(engine: Engine) -> None:
    assert engine.embed([]).shape == (0, 128)
    assert engine.embed(iter(()), output="relu2_1", pool="none").shape == (0, 16, 16, 16)


def test_neighbours_show_the_same_digit(engine: Engine, digits_test: ImageSet) -> None:
    vectors = engine.embed(digits_test.images, normalise=True)
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -1)
    same = digits_test.labels[similar.argmax(axis=1)] == digits_test.labels
    assert same.mean() > 0.9


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"output": "fc77"}, "did you mean 'fc7'"),
        ({"output": "pool5"}, "known: fc7, logits, relu2_1"),
        ({"pool": "mean"}, "known: avg, max, none"),
    ],
)
def test_a_wrong_name_is_one_clear_error(engine: Engine, digit_png: Path, options: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        engine.embed(digit_png, **options)
    assert told in caught.value.hint


def test_what_is_no_image_is_the_usual_error(engine: Engine) -> None:
    with pytest.raises(InputError):
        engine.embed(7)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="image 1 of the batch"):
        engine.embed([np.zeros((5, 5), np.uint8), b"x"])


def specs(*names: str) -> list[TensorSpec]:
    shapes: dict[str, tuple[int, ...]] = {"pool5": (512, 7, 7), "relu4_2": (512, 28, 28)}
    return [TensorSpec(name, "float32", ("N", *shapes.get(name, (10,)))) for name in names]


@pytest.mark.parametrize(
    ("outputs", "chosen"),
    [(["logits", "fc6"], "fc6"), (["pool5"], "pool5"), (["relu4_2", "fc7", "logits"], "fc7"), (["fc7"], "fc7")],
)
def test_the_output_that_goes_without_saying_is_taken(outputs: list[str], chosen: str) -> None:
    assert embedding(specs(*outputs)).output.name == chosen


def test_otherwise_the_choice_is_asked_for() -> None:
    with pytest.raises(UsageError) as several:
        embedding(specs("pool5", "logits", "relu4_2"))
    assert "pool5, relu4_2" in several.value.hint
    with pytest.raises(UsageError) as none:
        embedding(specs("logits", "probabilities"))
    assert "--outputs fc7" in none.value.hint
    assert embedding(specs("logits"), "logits").shape == (10,)


def test_the_shape_of_a_vector_is_known_before_any_image() -> None:
    shapes = {pool: embedding(specs("pool5"), pool=pool).shape for pool in ("avg", "max", "none")}
    assert shapes == {"avg": (512,), "max": (512,), "none": (512, 7, 7)}


def test_lengths_neither_overflow_nor_vanish_and_zero_stays_zero() -> None:
    vectors = np.array([[3, 4], [3e30, 4e30], [3e-40, 4e-40], [0, 0]], np.float32)
    found = unit_length(vectors)
    np.testing.assert_allclose(found[:3], [[0.6, 0.8]] * 3, rtol=1e-4)
    assert found[3].tolist() == [0, 0]


def test_gram_matrices_have_known_answers() -> None:
    maps = np.array([[[[1, 2], [3, 4]], [[0, 1], [0, -1]]]], np.float32)
    # Channel 1 with itself: 1 + 4 + 9 + 16; with channel 2: 2 · 1 − 4 · 1; channel 2 with itself: 1 + 1.
    assert gram_matrix(maps, normalise=False).tolist() == [[[30, -2], [-2, 2]]]
    assert gram_matrix(maps).tolist() == [[[30 / 8, -2 / 8], [-2 / 8, 2 / 8]]]


def test_a_gram_matrix_forgets_where_and_keeps_what(engine: Engine, pictures: list[np.ndarray]) -> None:
    maps = raw(engine, pictures)["relu2_1"]
    grams = gram_matrix(maps)
    assert (grams.shape, grams.dtype) == ((21, 16, 16), np.float32)
    np.testing.assert_allclose(grams, np.einsum("nchw,ndhw->ncd", maps, maps) / maps[0].size, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(gram_matrix(maps[:, :, ::-1, ::-1]), grams, rtol=1e-3, atol=1e-6)
    assert np.linalg.eigvalsh(grams.astype(np.float64)).min() > -1e-5


def test_what_is_no_feature_map_has_no_gram_matrix() -> None:
    with pytest.raises(InputError, match=r"\[5, 128\]"):
        gram_matrix(np.zeros((5, 128), np.float32))


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_a_batch_below_a_variants_minimum_is_filled_up(features_dir: Path, count: int) -> None:
    bundle = Bundle.open(features_dir)
    images = bundle.golden()[0]["image"][:count]
    with open_session(bundle, bundle.manifest.variant("onnx-fp32")) as session:
        expected = session.run({"image": images})
        session.batch = BatchRange(4, 4, 8)  # as of an engine that was built for it
        found = run_batch(session, images)
        with pytest.raises(InputError, match="a batch of 0"):
            run_batch(session, images[:0])
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
