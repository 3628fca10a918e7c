"""The recipe `fast`: what it trains is an ordinary VGG, and the bundle answers as the evaluation said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vggdeploy
from vggdeploy.data.loaders import ImageSet
from vggdeploy.data.sources import default_preprocess
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.spec import ModelSpec
from vggdeploy.train.loop import train
from vggdeploy.train.recipe_file import resolve_recipe


def test_it_is_a_quarter_width_vgg_for_fashion_mnist_and_for_ones_own_images() -> None:
    recipe = resolve_recipe("fast", {})
    spec = recipe.model_spec()
    assert (spec.arch, spec.width, spec.batch_norm, recipe.dataset) == ("vgg11_bn", 0.25, True, "fashion-mnist")
    assert recipe.preprocess() == default_preprocess("fashion-mnist", recipe.image_size)
    assert resolve_recipe("fast", {"dataset": "folder:flowers"}).channels == 0  # whatever the folder has


@pytest.mark.late
def test_what_it_learned_travels_into_the_bundle(tmp_path: Path, digits_test: ImageSet) -> None:
    # Flips are no augmentation for digits; the rest is as it is.
    changes = {
        "dataset": "digits",
        "epochs": 3,
        "batch_size": 64,
        "augment": ("shift",),
        "width": 0.125,
        "image_size": 32,
    }
    recipe = resolve_recipe("fast", changes)
    done = train(recipe, output=tmp_path / "ckpt").training
    assert done.test_accuracy > 0.8  # it learns: chance is 0.1
    bundle = export_bundle(tmp_path / "ckpt", tmp_path / "bundle", ExportOptions(formats=("onnx-fp32",)))
    assert bundle.manifest.preprocess == recipe.preprocess()
    # No trace of how it was trained is left in the network.
    assert bundle.manifest.spec == ModelSpec.named(
        "vgg11_bn", width=0.125, in_channels=1, classes=10, image_size=32, hidden=128, dropout=0.0
    )
    with vggdeploy.load(tmp_path / "bundle", variant="onnx-fp32") as engine:
        answers = np.concatenate(
            [engine.run({"image": digits_test.images[at : at + 64]})["logits"] for at in range(0, len(digits_test), 64)]
        )
    assert float((answers.argmax(1) == digits_test.labels).mean()) == pytest.approx(done.test_accuracy)
