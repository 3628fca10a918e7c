"""Bias correction takes back what rounding does to the mean of each channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from vggdeploy.bundle import Bundle
from vggdeploy.data.loaders import load_split
from vggdeploy.optimize.steps import quantiser as int8
from vggdeploy.optimize.steps.bias import corrected, shifts

LAST = "node_linear_2"


@pytest.fixture(scope="module")
def source(bundle_dir: Path) -> Path:
    bundle = Bundle.open(bundle_dir)
    return bundle.path(bundle.manifest.variant("onnx-fp32").path)


@pytest.fixture(scope="module")
def batches(bundle: Bundle) -> list[dict[str, Any]]:
    images = load_split("digits", "train", bundle.manifest.preprocess, limit=64).images
    return [{"image": images[:32]}, {"image": images[32:]}]


@pytest.fixture(scope="module")
def ranges(source: Path, batches: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("calibration")
    return int8.calibrate(source, iter(batches), method="min-max", percentile=99.99, scratch=home)


def means(model: onnx.ModelProto, batches: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], batch)[0] for batch in batches]).mean(axis=0)


@pytest.mark.parametrize("flavour", [int8.CPU, int8.TENSORRT], ids=["cpu", "tensorrt"])
def test_the_mean_of_every_class_score_is_the_fp32_networks(
    source: Path, batches: list[dict[str, Any]], ranges: Any, flavour: int8.Flavour
) -> None:
    expected = means(onnx.load(source), batches)
    found = shifts(onnx.load(source), int8.quantise(onnx.load(source), ranges, flavour), batches)
    assert len(found) == 11
    only = {LAST: found[LAST]}

    before = means(int8.quantise(onnx.load(source), ranges, flavour, only=[LAST]), batches) - expected
    model = corrected(onnx.load(source), only)
    after = means(int8.quantise(model, ranges, flavour, only=[LAST]), batches) - expected
    np.testing.assert_allclose(before, found[LAST], atol=1e-3)
    assert np.abs(after).max() < 0.2 * np.abs(before).max()


def test_a_layer_that_stays_in_fp32_has_no_shift(source: Path, batches: list[dict[str, Any]], ranges: Any) -> None:
    quantised = int8.quantise(onnx.load(source), ranges, int8.CPU, keep=[LAST])
    assert LAST not in shifts(onnx.load(source), quantised, batches)
