"""What is evaluated, and on what: checkpoints, every variant, any order of classes, a batch at a time."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.data.loaders import ImageSet
from vggdeploy.errors import BundleError, DataError, UsageError
from vggdeploy.evaluate import evaluate as module
from vggdeploy.evaluate.evaluate import EvaluateOptions, evaluate
from vggdeploy.evaluate.targets import open_model
from vggdeploy.records import from_json, to_json
from vggdeploy.records.evaluation import EvaluationReport


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> EvaluationReport:
    return evaluate(checkpoint)


def give(monkeypatch: pytest.MonkeyPatch, data: Any) -> None:
    """Put another data set in the place of the one that is read."""
    monkeypatch.setattr(module, "open_split", lambda *args, **options: data)


def test_a_checkpoint_scores_what_training_said_it_scores(checkpoint: Path, reference: EvaluationReport) -> None:
    # Training evaluates with its own code, without the session: two ways to the same figures.
    training = read_checkpoint(checkpoint).training
    assert reference.accuracy.rate == training["test_accuracy"]
    assert reference.loss == pytest.approx(training["test_loss"], rel=1e-4)
    assert (reference.variant, reference.backend, reference.device) == ("torch-fp32", "torch", "cpu")
    assert (reference.dataset, reference.split, reference.accuracy.samples) == ("digits", "test", 359)
    assert reference.sha256 == read_checkpoint(checkpoint).weights_sha256


@pytest.mark.parametrize("variant", ["torch-fp32", "onnx-fp32", "onnx-fp16", "torchscript-fp32"])
def test_every_variant_scores_as_its_checkpoint(bundle_dir: Path, reference: EvaluationReport, variant: str) -> None:
    found = evaluate(bundle_dir, EvaluateOptions(variant=variant))
    assert found.variant == variant
    assert abs(found.accuracy.hits - reference.accuracy.hits) <= (1 if variant == "onnx-fp16" else 0)
    assert found.loss == pytest.approx(reference.loss, rel=2e-2)
    assert len(found.sha256) == 64


def test_the_counts_fit_together(reference: EvaluationReport) -> None:
    assert reference.confusion is not None
    assert [c.images for c in reference.classes] == [sum(row) for row in reference.confusion]
    assert [c.predicted for c in reference.classes] == [
        sum(column) for column in zip(*reference.confusion, strict=True)
    ]
    assert [c.correct for c in reference.classes] == [row[i] for i, row in enumerate(reference.confusion)]
    assert sum(c.correct for c in reference.classes) == reference.accuracy.hits
    wrong = reference.accuracy.samples - reference.accuracy.hits
    assert sum(pair.images for pair in reference.confused) == wrong


def test_the_report_survives_json(reference: EvaluationReport) -> None:
    assert from_json(to_json(reference), EvaluationReport, what="report") == reference


def test_evaluation_mode_without_gradients(checkpoint: Path) -> None:
    seen: list[tuple[bool, bool]] = []

    def look(module: torch.nn.Module, *_: object) -> None:
        if isinstance(module, torch.nn.BatchNorm2d):
            seen.append((module.training, torch.is_grad_enabled()))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        evaluate(checkpoint, EvaluateOptions(samples=4))
    finally:
        handle.remove()
    assert set(seen) == {(False, False)}


def test_samples_and_split_choose_the_images(checkpoint: Path) -> None:
    found = evaluate(checkpoint, EvaluateOptions(split="validation", samples=20))
    assert (found.split, found.accuracy.samples) == ("validation", 20)
    assert evaluate(checkpoint, EvaluateOptions(split="validation")).accuracy.samples == 143


def test_images_are_taken_a_batch_at_a_time(
    bundle_dir: Path, digits_test: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Watched(ImageSet):
        def batch(self, positions: np.ndarray) -> np.ndarray:
            sizes.append(len(positions))
            return super().batch(positions)

        def take(self, positions: np.ndarray) -> ImageSet:
            return self

    give(monkeypatch, Watched(**vars(digits_test)))
    done: list[float | None] = []
    evaluate(bundle_dir, EvaluateOptions(variant="onnx-fp32"), on_progress=lambda share, phase: done.append(share))
    assert done == sorted(done)
    assert done[-1] == 1
    assert sum(sizes) == len(digits_test)
    assert max(sizes) == 8  # what the variant is optimised for


def test_a_folder_is_a_data_set(checkpoint: Path, digits_test: ImageSet, tmp_path: Path) -> None:
    for index, label in enumerate(digits_test.labels[:60]):
        directory = tmp_path / "test" / digits_test.classes[label]
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits_test.images[index, ..., 0]).save(directory / f"{index}.png")
    shutil.copytree(tmp_path / "test", tmp_path / "train")
    found = evaluate(checkpoint, EvaluateOptions(dataset=f"folder:{tmp_path}"))
    same = evaluate(checkpoint, EvaluateOptions(samples=60))
    assert [c.images for c in found.classes] == [c.images for c in same.classes]
    assert found.accuracy == same.accuracy


def test_the_same_names_in_another_order_are_matched_by_name(
    checkpoint: Path, reference: EvaluationReport, digits_test: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = replace(digits_test, classes=tuple(reversed(digits_test.classes)), labels=9 - digits_test.labels)
    give(monkeypatch, turned)
    found = evaluate(checkpoint)
    assert found.classes == reference.classes
    assert found.notes == ()


def test_other_names_are_matched_by_order_and_a_note_says_so(
    checkpoint: Path, reference: EvaluationReport, digits_test: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, replace(digits_test, classes=("0", "1", "deux", *"3456789")))
    found = evaluate(checkpoint)
    assert found.accuracy == reference.accuracy
    (note,) = found.notes
    assert "class 2 is 'deux' there, and '2' in the model" in note


def test_class_counts_that_differ_are_one_clear_error(
    checkpoint: Path, digits_test: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, replace(digits_test, classes=tuple("abc")))
    with pytest.raises(UsageError, match="digits has 3 classes, the model 10"):
        evaluate(checkpoint)


def test_no_images_are_an_error(checkpoint: Path, digits_test: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, replace(digits_test, images=digits_test.images[:0], labels=digits_test.labels[:0]))
    with pytest.raises(DataError, match="no test images"):
        evaluate(checkpoint)


def test_a_model_of_unknown_origin_needs_the_name_of_a_data_set(checkpoint: Path, tmp_path: Path) -> None:
    import msgspec

    from vggdeploy.model.weights import load_model, save_checkpoint

    stranger = msgspec.structs.replace(read_checkpoint(checkpoint), dataset="", labels=())
    save_checkpoint(tmp_path / "ckpt", load_model(checkpoint), stranger)
    with pytest.raises(DataError, match="no data set is known"):
        evaluate(tmp_path / "ckpt")
    found = evaluate(tmp_path / "ckpt", EvaluateOptions(dataset="digits", samples=30))
    assert [c.label for c in found.classes] == list("0123456789")  # the data set's names, where the model has none


@pytest.mark.parametrize(
    ("options", "told"),
    [({"backend": "onnxruntime"}, "the backend onnxruntime"), ({"variant": "onnx-fp16"}, "the variant onnx-fp16")],
)
def test_a_checkpoint_has_one_backend_and_no_variants(checkpoint: Path, options: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught, open_model(checkpoint, **options):
        pass
    assert "vggdeploy export" in caught.value.hint


def test_a_variant_of_another_backend_is_refused(bundle_dir: Path) -> None:
    with (
        pytest.raises(UsageError, match="onnx-fp32 is run by onnxruntime, not by torch"),
        open_model(bundle_dir, backend="torch", variant="onnx-fp32"),
    ):
        pass


def test_what_is_neither_is_said_to_be_neither(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="neither a bundle nor a checkpoint"), open_model(tmp_path):
        pass
    with pytest.raises(BundleError, match="does not exist"), open_model(tmp_path / "none"):
        pass
