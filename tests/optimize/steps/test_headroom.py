"""Weights that are rounded anew fit into 16 bits pair by pair, as close to the originals as that allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from fixtures.int8 import LIBRARIES, distance, on_onnxruntime, saturates_here, with_wide_sums
from hypothesis import given, settings
from hypothesis import strategies as st

from vggdeploy.optimize.steps import headroom
from vggdeploy.optimize.steps import quantiser as int8
from vggdeploy.optimize.steps.headroom import fitted
from vggdeploy.parity.integer import IntegerReference
from vggdeploy.parity.saturation import bound_of, int8_products, widest_pairs
from vggdeploy.types import Precision


def squared_error(codes: np.ndarray, factors: np.ndarray, exact: np.ndarray) -> float:
    return float(np.square(codes * factors[:, None, None] - exact).sum())


@settings(max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 7), st.sampled_from([1, 9]), st.integers(128, 255))
def test_no_two_neighbours_are_too_wide(seed: int, outputs: int, channels: int, positions: int, limit: int) -> None:
    exact = np.random.default_rng(seed).uniform(-127.5, 127.5, (outputs, channels, positions)).astype(np.float32)
    codes, factors = fitted(exact, limit)
    assert widest_pairs(codes).max() <= limit
    assert codes.min() >= -127
    assert ((factors >= 1) & (factors <= 2)).all()


def test_it_costs_less_than_7_bits() -> None:
    exact = np.random.default_rng(0).normal(scale=32, size=(64, 32, 9)).astype(np.float32)
    exact *= 127 / np.abs(exact).max(axis=(1, 2), keepdims=True)
    own = squared_error(*fitted(exact, 128), exact)
    seven = squared_error(np.rint(exact / 2), np.full(64, 2.0), exact)
    assert own < 0.7 * seven


def test_a_single_wide_pair_moves_to_the_nearest_that_fits() -> None:
    exact = np.zeros((1, 2002, 1), np.float32)
    exact[0, :2, 0] = 100.0, 40.0
    exact[0, 2:, 0] = np.linspace(-60, 60, 2000) // 1  # which a larger scale would cost more
    codes, factors = fitted(exact, 128)
    assert factors.tolist() == [1.0]
    assert codes[0, :2, 0].tolist() == [94, 34]
    np.testing.assert_array_equal(codes[0, 2:], exact[0, 2:])


@pytest.fixture(scope="module")
def wide_network(onnx_files: dict[Precision, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_wide_sums(onnx_files[Precision.FP32], tmp_path_factory.mktemp("wide") / "model.onnx")


def images(count: int) -> np.ndarray:
    """Noise of every brightness, with white and black."""
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (count, 32, 32, 3)) * random.uniform(0, 2, (count, 1, 1, 1))
    return np.clip(noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_quantised_network_is_what_its_graph_says_on_any_cpu(
    wide_network: Path, tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1e-3 of exact integers; without the new rounding it is not, where the CPU has no VNNI."""
    pytest.importorskip(library)
    batch = {"image": images(16)}
    ranges = int8.calibrate(wide_network, [batch], method="min-max", percentile=100, scratch=tmp_path / "scratch")
    for repaired in (True, False):
        if not repaired:
            monkeypatch.setattr(int8, "fit_pairs", lambda model, exact: None)
        model = int8.quantise(onnx.load(wide_network), ranges, int8.CPU)
        saturating = sum(bound_of(product).saturating for product in int8_products(model.graph, {}))
        assert bool(saturating) != repaired
        exact = IntegerReference(model).run(batch)["logits"]
        away = distance(LIBRARIES[library](model, batch["image"]), exact)
        assert away < 1e-3 if repaired else away > 3e-3 or not saturates_here(library)
    assert distance(on_onnxruntime(model, batch["image"], exact=True), exact) < 1e-3


def test_the_scale_grows_with_the_codes_and_the_bias_stays(
    wide_network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the graph computes moves by rounding alone: the new graph is as near to FP32 as 7 bits would be, or nearer."""
    batch = {"image": images(16)}
    expected = on_onnxruntime(onnx.load(wide_network), batch["image"])
    ranges = int8.calibrate(wide_network, [batch], method="min-max", percentile=100, scratch=tmp_path / "scratch")
    away = {}
    for name, factors in (("own", headroom._FACTORS), ("7 bits", np.float32([2]))):
        monkeypatch.setattr(headroom, "_FACTORS", factors)
        model = int8.quantise(onnx.load(wide_network), ranges, int8.CPU)
        away[name] = distance(IntegerReference(model).run(batch)["logits"], expected)
    assert away["own"] < 1.05 * away["7 bits"] < 0.1


def test_symmetric_files_keep_their_eight_bits(wide_network: Path, tmp_path: Path) -> None:
    """TensorRT adds in 32 bits."""
    ranges = int8.calibrate(
        wide_network, [{"image": images(4)}], method="min-max", percentile=100, scratch=tmp_path / "s"
    )
    model = int8.quantise(onnx.load(wide_network), ranges, int8.TENSORRT)
    codes = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("weight_quantized")]
    assert all(np.abs(c.astype(int)).reshape(len(c), -1).max(axis=1).min() == 127 for c in codes)
