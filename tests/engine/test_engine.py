"""The engine that applications embed: answers, choices, bad input, threads."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

import vggdeploy
from vggdeploy import InputError, ParityError, UsageError, VggdeployError
from vggdeploy.bundle import Bundle, Measurement, update_bundle
from vggdeploy.data.loaders import ImageSet
from vggdeploy.engine import selection
from vggdeploy.engine.engine import Engine, softmax
from vggdeploy.engine.selection import choices
from vggdeploy.records import ParityRecord
from vggdeploy.runtime.base import Source
from vggdeploy.runtime.onnxruntime.session import OnnxRuntimeSession
from vggdeploy.system.machine import fingerprint, usable_cores
from vggdeploy.types import Verdict


@pytest.fixture(scope="module")
def engine(bundle_dir: Path):
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as opened:
        yield opened


def test_it_answers_as_well_as_the_model_was_trained(engine: Engine, digits_test: ImageSet) -> None:
    answers = engine.classify([image[..., 0] for image in digits_test.images], top=1)
    right = [answer[0].index == label for answer, label in zip(answers, digits_test.labels, strict=True)]
    recorded = engine.variant.parity
    assert recorded is not None
    assert np.mean(right) == pytest.approx(recorded.reference_accuracy)
    assert np.mean(right) > 0.9


def test_a_file_bytes_an_image_and_an_array_are_the_same_image(engine: Engine, digit_png: Path) -> None:
    image = Image.open(digit_png)
    forms = [digit_png, str(digit_png), digit_png.read_bytes(), image, np.asarray(image)]
    answers = [engine.classify(form) for form in forms]
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][0].label == digit_png.stem


def test_one_image_gives_one_list_and_many_give_many(engine: Engine, digit_png: Path) -> None:
    one = engine.classify(digit_png, top=2)
    assert [type(p).__name__ for p in one] == ["Prediction", "Prediction"]
    assert engine.classify([digit_png, digit_png], top=2) == [one, one]
    assert engine.classify([]) == []


def test_a_wanted_batch_is_how_images_are_cut(bundle_dir: Path, digits_test: ImageSet, monkeypatch) -> None:
    sizes = []
    run = OnnxRuntimeSession.run
    monkeypatch.setattr(
        OnnxRuntimeSession, "run", lambda self, feeds: (sizes.append(len(feeds["image"])), run(self, feeds))[1]
    )
    images = [image[..., 0] for image in digits_test.images[:20]]
    with vggdeploy.load(bundle_dir, variant="onnx-fp32", batch=9, verify="never") as opened:
        assert len(opened.classify(images)) == 20
    assert sizes == [9, 9, 2]
    with pytest.raises(UsageError, match="the batch cannot be 0"):
        vggdeploy.load(bundle_dir, batch=0)


def test_probabilities_are_sorted_and_sum_to_one(engine: Engine, digit_png: Path) -> None:
    answers = engine.classify(digit_png, top=99)
    assert len(answers) == 10
    assert sum(p.probability for p in answers) == pytest.approx(1, abs=1e-5)
    assert answers == sorted(answers, key=lambda p: -p.probability)


def test_softmax_does_not_overflow() -> None:
    assert softmax(np.float32([[1e4, 1e4]])).tolist() == [[0.5, 0.5]]


def test_more_images_than_a_batch_are_answered_in_order(engine: Engine, digits_test: ImageSet) -> None:
    images = [image[..., 0] for image in digits_test.images[:21]]
    together = engine.classify(images, top=1)
    assert [a[0].index for a in together] == [engine.classify(i, top=1)[0].index for i in images]


def image_batch(shape: tuple[int, ...] = (1, 32, 32, 1), dtype: str = "uint8") -> dict[str, np.ndarray]:
    return {"image": np.zeros(shape, dtype)}


@pytest.mark.parametrize(
    ("feeds", "told"),
    [
        (image_batch(dtype="float32"), "float32[1, 32, 32, 1]"),
        (image_batch(dtype="int8"), "int8"),
        (image_batch((1, 1, 32, 32)), "uint8[1, 1, 32, 32]"),
        (image_batch((32, 32, 1)), "uint8[32, 32, 1]"),
        (image_batch((1, 33, 32, 1)), "[1, 33, 32, 1]"),
        (image_batch((0, 32, 32, 1)), "a batch of 0"),
        (image_batch((257, 32, 32, 1)), "a batch of 257 is outside 1…256"),
        ({"picture": np.zeros((1, 32, 32, 1), np.uint8)}, "inputs ['picture']"),
        ({}, "inputs []"),
        ({"image": [[1]]}, "a list"),
    ],
)
def test_a_wrong_array_is_one_clear_error(engine: Engine, feeds: dict, told: str) -> None:
    with pytest.raises(InputError) as caught:
        engine.run(feeds)
    assert told in caught.value.cause
    assert caught.value.hint


def test_nan_is_refused_where_the_input_is_float(float_bundle_dir: Path) -> None:
    with vggdeploy.load(float_bundle_dir) as engine, pytest.raises(InputError, match="NaN"):
        engine.run({"image": np.full((1, 1, 32, 32), np.nan, np.float32)})


def test_a_float_input_bundle_normalises_on_the_host_and_answers_the_same(
    float_bundle_dir: Path, engine: Engine, digit_png: Path
) -> None:
    with vggdeploy.load(float_bundle_dir, backend="onnxruntime") as other:
        ours, theirs = engine.classify(digit_png), other.classify(digit_png)
    assert [p.label for p in ours] == [p.label for p in theirs]
    assert [p.probability for p in ours] == pytest.approx([p.probability for p in theirs], abs=1e-5)


def test_a_closed_engine_says_so(bundle_dir: Path, digit_png: Path) -> None:
    engine = vggdeploy.load(bundle_dir, variant="onnx-fp32")
    engine.close()
    engine.close()
    with pytest.raises(VggdeployError, match="closed"):
        engine.classify(digit_png)


def test_threads_share_an_engine(engine: Engine, bundle: Bundle) -> None:
    inputs, outputs = bundle.golden()
    wrong: list[int] = []

    def work(row: int) -> None:
        for _ in range(20):
            found = engine.run({"image": inputs["image"][row : row + 1]})["logits"]
            if not np.allclose(found, outputs["logits"][row : row + 1], atol=1e-4):
                wrong.append(row)

    workers = [threading.Thread(target=work, args=(row,)) for row in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_auto_takes_the_fastest_measured_here(own_bundle: Path) -> None:
    opened = Bundle.open(own_bundle)
    times = {"onnx-fp32": 3.0, "onnx-fp16": 2.0, "torchscript-fp32": 1.0}
    changed = [
        msgspec.structs.replace(
            opened.manifest.variant(name),
            measured=(Measurement(machine=fingerprint(), backend="x", batch=1, threads=1, p50_ms=ms),),
        )
        for name, ms in times.items()
    ]
    with update_bundle(opened) as draft:
        draft.manifest = opened.manifest.with_variants(*changed)
    with vggdeploy.load(own_bundle) as engine:
        assert engine.variant.name == "torchscript-fp32"
    with vggdeploy.load(own_bundle, backend="onnxruntime") as engine:
        assert engine.variant.name == "onnx-fp16"


@pytest.mark.parametrize(
    ("machine", "given", "threads"), [("here", None, 1), ("here", 3, 3), ("another", None, usable_cores())]
)
def test_it_is_opened_with_the_threads_that_it_was_fastest_with_here(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, machine: str, given: int | None, threads: int
) -> None:
    opened = Bundle.open(own_bundle)
    where = fingerprint() if machine == "here" else machine
    changed = msgspec.structs.replace(
        opened.manifest.variant("onnx-fp32"),
        measured=tuple(
            Measurement(machine=where, backend="onnxruntime", batch=1, threads=count, p50_ms=ms)
            for count, ms in ((1, 0.5), (2, 0.8))
        ),
    )
    with update_bundle(opened) as draft:
        draft.manifest = opened.manifest.with_variants(changed)
    monkeypatch.setattr(selection, "usable_cores", lambda: max(2, usable_cores()))
    seen: list[int] = []
    plain = OnnxRuntimeSession.__init__

    def note(self: OnnxRuntimeSession, source: Source) -> None:
        seen.append(source.thread_count)
        plain(self, source)

    monkeypatch.setattr(OnnxRuntimeSession, "__init__", note)
    with vggdeploy.load(own_bundle, variant="onnx-fp32", threads=given):
        assert seen == [threads]


def test_what_was_measured_on_another_machine_does_not_count(own_bundle: Path) -> None:
    opened = Bundle.open(own_bundle)
    slow = msgspec.structs.replace(
        opened.manifest.variant("torchscript-fp32"),
        measured=(Measurement(machine="another", backend="x", batch=1, threads=1, p50_ms=0.001),),
    )
    with update_bundle(opened) as draft:
        draft.manifest = opened.manifest.with_variants(slow)
    with vggdeploy.load(own_bundle) as engine:
        assert engine.variant.name == "onnx-fp32"


def test_a_variant_that_failed_parity_is_never_taken(own_bundle: Path) -> None:
    opened = Bundle.open(own_bundle)
    failed = ParityRecord(variant="onnx-fp32", backend="onnxruntime", device="cpu", verdict=Verdict.FAIL)
    with update_bundle(opened) as draft:
        draft.manifest = opened.manifest.with_variants(
            msgspec.structs.replace(opened.manifest.variant("onnx-fp32"), parity=failed)
        )
    with vggdeploy.load(own_bundle) as engine:
        assert engine.variant.name != "onnx-fp32"
    with pytest.raises(ParityError):
        vggdeploy.load(own_bundle, variant="onnx-fp32")


def test_an_unproven_variant_has_to_repeat_the_golden_pair_first(own_bundle: Path) -> None:
    opened = Bundle.open(own_bundle)
    variants = [msgspec.structs.replace(v, parity=None) for v in opened.manifest.candidates()]
    _inputs, outputs = opened.golden()
    with update_bundle(opened) as draft:
        draft.manifest = opened.manifest.with_variants(*variants)
        draft.save_arrays("golden/outputs", {"logits": outputs["logits"] + 5})
    with pytest.raises(ParityError, match="golden pair"):
        vggdeploy.load(own_bundle, variant="onnx-fp32")


def test_every_variant_and_its_standing_is_explained(bundle: Bundle) -> None:
    found = choices(bundle)
    assert {c.variant.name for c in found} == {v.name for v in bundle.manifest.variants}
    assert all(c.reason for c in found)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"backend": "onnxruntim"}, "did you mean 'onnxruntime'"),
        ({"variant": "onnx-fp8"}, "did you mean 'onnx-fp"),
        ({"device": "tpu"}, "cpu, cuda"),
        ({"threads": 0}, "at least 1"),
    ],
)
def test_a_wrong_option_is_answered_with_the_right_one(bundle_dir: Path, options: dict, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        vggdeploy.load(bundle_dir, **options)
    assert told in str(caught.value)


def test_a_gpu_that_is_not_there_is_exit_5_and_never_the_cpu(bundle_dir: Path) -> None:
    with pytest.raises(vggdeploy.IncompatibleError) as caught:
        vggdeploy.load(bundle_dir, backend="onnxruntime", device="cuda")
    assert caught.value.exit_code == 5
    assert caught.value.hint
