"""What no image can saturate is right on CPUs without VNNI, and what one can is found, in the graph and on both libraries."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixtures.int8 import FULL, LIBRARIES, Array, Graph, distance, on_onnxruntime, one_product, saturates_here
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from vggdeploy.bundle import ProductBound
from vggdeploy.bundle.variant import INT16, INT32
from vggdeploy.errors import BundleError
from vggdeploy.parity.integer import IntegerReference
from vggdeploy.parity.saturation import bound_of, int8_products, pairings, read_saturation, widest_pairs


def bounds(model: onnx.ModelProto) -> list[ProductBound]:
    return [bound_of(product) for product in int8_products(model.graph, {})]


def neighbours(weights: Array) -> list[Array]:
    """The weights of each output channel, pair by pair, written once more: blocks of channels, rows of an image, and of one
    channel rows of the kernel."""
    outputs, channels, positions = weights.shape
    even = np.pad(weights, ((0, 0), (0, channels % 2), (0, 0)))
    blocks = [even[:, [c, c + 1], p] for c in range(0, channels, 2) for p in range(positions)]
    row = np.moveaxis(weights, 1, 2).reshape(outputs, -1)
    row = np.pad(row, ((0, 0), (0, row.shape[1] % 2)))
    width = round(positions**0.5)
    rows = [weights[:, 0, p : p + 2] for p in range(positions) if p % width % 2 == 0 and p % width + 1 < width]
    return blocks + [row[:, k : k + 2] for k in range(0, row.shape[1], 2)] + (rows if channels == 1 else [])


def saturated_by_the_worst_image(weights: Array) -> Array:
    """Output channels in which some pair exceeds 16 bits, by trying it: 255 where weights are positive, then negative."""
    worst = np.zeros(len(weights), bool)
    for pair in neighbours(weights.astype(np.int64)):
        for sign in (1, -1):
            image = np.where(sign * pair > 0, FULL, 0)
            total = (image * pair).sum(axis=1)
            worst |= (total > 2**15 - 1) | (total < -(2**15))
    return worst


def narrow(random: np.random.Generator, *shape: int) -> Array:
    """Weights of which any two fit together."""
    return random.integers(-64, 65, shape).astype(np.int8)


def test_planted_saturation_is_found_in_all_of_200_random_graphs(tmp_path: Path) -> None:
    random = np.random.default_rng(13)
    for trial in range(200):
        channels, outputs = (int(n) for n in random.integers(1, 9, 2))
        kernel = int(random.choice([1, 3])) if trial % 2 else 0
        channels += not kernel or kernel == 1  # one weight has no neighbour
        shape = (outputs, channels, kernel, kernel) if kernel else (outputs, channels)
        weights = narrow(random, *shape)
        assert [(b.saturating, b.worst) for b in bounds(one_product(weights, side=4))] == [(0, ())]
        planted = int(random.integers(outputs))
        pairs = (
            random.choice(pairings(channels, kernel**2 or 1), axis=0)
            if channels % 2 == 0
            else pairings(channels, kernel**2 or 1)[-1]
        )
        first, second = pairs[random.integers(len(pairs))]
        sum_ = int(random.integers(129, 255))
        flat, sign = weights.reshape(outputs, -1), random.choice([1, -1])
        flat[planted, first] = sign * (sum_ // 2)
        flat[planted, second] = sign * (sum_ - sum_ // 2)
        path = tmp_path / "graph.onnx"
        onnx.save(one_product(weights, side=4), path)
        (found,) = read_saturation(path, {}).products
        assert (found.saturating, found.worst, found.pair) == (1, (planted,), FULL * sum_), shape


small = st.integers(1, 5)


@settings(max_examples=150)
@given(st.data(), small, small, st.sampled_from([1, 4, 9]), st.integers(0, 128))
def test_no_image_saturates_what_the_bound_excludes(
    data: st.DataObject, outputs: int, channels: int, positions: int, most: int
) -> None:
    """The attack is the worst image there is, and it also reaches the bound: it is as low as it can be."""
    values = st.lists(st.integers(-most, min(most, 127)), min_size=outputs * channels * positions,
                      max_size=outputs * channels * positions)  # fmt: skip
    weights = np.array(data.draw(values), np.int8).reshape(outputs, channels, positions)
    widest = FULL * widest_pairs(weights)
    np.testing.assert_array_equal(widest > INT16, saturated_by_the_worst_image(weights))
    reached = [
        np.abs(np.where(s * pair > 0, FULL, 0) * pair).sum(1)
        for s in (1, -1)
        for pair in neighbours(weights.astype(int))
    ]
    np.testing.assert_array_equal(widest, np.max(reached, axis=0))


SHAPES = [(1, 3), (2, 3), (3, 3), (4, 3), (5, 3), (6, 3), (16, 1), (17, 0), (32, 0)]  # input channels, kernel (0: Gemm)


def saturated_pairs(library: str, channels: int, kernel: int) -> set[tuple[int, int]]:
    """Which pairs of weights a library adds in 16 bits: an output channel for each pair of the largest weights."""
    places = channels * (kernel**2 or 1)
    asked = list(itertools.combinations(range(places), 2))
    weights = np.zeros((len(asked), places), np.int8)
    weights[np.arange(len(asked))[:, None], asked] = 127
    shape = (len(asked), channels, kernel, kernel) if kernel else (len(asked), channels)
    model = one_product(weights.reshape(shape), side=kernel + 2)
    image = np.full((2, channels, kernel + 2, kernel + 2) if kernel else (2, channels), FULL, np.float32)
    (expected,) = IntegerReference(model).run({"x": image}).values()
    wrong = np.abs(LIBRARIES[library](model, image) - expected) > 2000
    return {asked[i] for i in np.flatnonzero(wrong.any(axis=(0, 2, 3) if kernel else 0))}


@pytest.mark.parametrize(("channels", "kernel"), SHAPES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_add_no_pair_in_16_bits_that_the_bound_does_not_know(
    library: str, channels: int, kernel: int
) -> None:
    pytest.importorskip(library)
    known = {tuple(sorted(pair)) for pairs in pairings(channels, kernel**2 or 1) for pair in pairs.tolist()}
    found = saturated_pairs(library, channels, kernel)
    assert found <= known
    if saturates_here(library) and channels > 1:
        assert found, "this CPU has no VNNI: the pairs have to show"


@pytest.mark.late
@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "AVX512_CORE"])
def test_so_it_is_with_the_kernels_of_older_cpus(isa: str) -> None:
    """OpenVINO takes them where oneDNN is told to."""
    pytest.importorskip("openvino")
    code = (
        "from parity.test_saturation import *\n"
        "for channels, kernel in SHAPES:\n"
        "    known = {tuple(sorted(p)) for pairs in pairings(channels, kernel**2 or 1) for p in pairs.tolist()}\n"
        "    found = saturated_pairs('openvino', channels, kernel)\n"
        "    assert found <= known and (found or channels == 1), (channels, kernel)\n"
        "assert saturates_here('openvino')"
    )
    paths = [str(Path(__file__).parents[1]), *sys.path]
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_channels_are_named_the_worst_first_and_by_how_much() -> None:
    weights = narrow(np.random.default_rng(0), 12, 6, 3, 3)
    for channel, sum_ in ((7, 200), (2, 254), (11, 129)):
        weights[channel, 2:4, 1, 1] = -(sum_ // 2), -(sum_ - sum_ // 2)
    (bound,) = bounds(one_product(weights, side=4))
    assert bound.worst == (2, 7, 11)
    assert (bound.channels, bound.saturating, bound.pair) == (12, 3, FULL * 254)
    assert bound.accumulator == FULL * np.abs(weights.astype(int)).sum(axis=(1, 2, 3)).max()


def test_what_comes_before_bounds_the_bytes() -> None:
    """A picture of bytes times 1/4 has 64 steps, so weights may be as large as they are; and no picture has more."""
    graph = Graph((2, 3, 3), TensorProto.UINT8)
    scaled = graph.add("Mul", graph.add("Cast", "x", to=TensorProto.FLOAT), np.float32(0.25).reshape(()))
    data = graph.rounded(graph.add("Relu", scaled))
    weights = np.full((1, 2, 1, 1), 127, np.int8)
    model = graph.model(graph.product("Conv", data, weights))
    (product,) = int8_products(model.graph, {})
    assert 64 <= product.high <= 65  # one more, as libraries round differently
    assert bound_of(product).saturating == 0
    model.graph.output[0].name = data
    (seen,) = IntegerReference(model).run({"x": np.full((1, 2, 3, 3), FULL, np.uint8)}).values()
    assert seen.max() <= product.high


@pytest.mark.parametrize("operator", ["Relu", "Sigmoid"])
def test_what_nothing_bounds_has_all_256_bytes(operator: str) -> None:
    graph = Graph((2, 3, 3))
    data = graph.rounded(graph.add(operator, "x"))
    (product,) = int8_products(graph.model(graph.product("Conv", data, np.ones((1, 2, 1, 1), np.int8))).graph, {})
    assert product.high == FULL


def test_signed_activations_are_bytes_from_128_on_to_a_kernel() -> None:
    graph = Graph((2, 3, 3))
    data = graph.rounded("x", kind=np.int8)
    (product,) = int8_products(graph.model(graph.product("Conv", data, np.ones((1, 2, 1, 1), np.int8))).graph, {})
    assert (product.zero, product.high) == (128, FULL)


def unsigned(graph: Graph, data: str) -> str:
    return graph.product("MatMul", data, np.full((4, 2), 3, np.uint8))


def moved(graph: Graph, data: str) -> str:
    weights = graph.add("DequantizeLinear", np.ones((2, 4), np.int8), np.float32(1).reshape(()))
    return graph.add("MatMul", data, graph.add("Transpose", weights, perm=(1, 0)))


def shifted(graph: Graph, data: str) -> str:
    zero = np.int8(5).reshape(())
    return graph.add(
        "MatMul", data, graph.add("DequantizeLinear", np.ones((4, 2), np.int8), np.float32(1).reshape(()), zero)
    )


def fused(graph: Graph, data: str) -> str:
    codes = graph.add("QuantizeLinear", data, np.float32(1).reshape(()), np.uint8(0).reshape(()))
    return graph.add("MatMulInteger", codes, np.ones((4, 2), np.int8))


@pytest.mark.parametrize("product", [unsigned, moved, shifted, fused])
def test_weights_that_cannot_be_told_are_never_called_safe(product: Any, tmp_path: Path) -> None:
    graph = Graph((4,))
    path = tmp_path / "graph.onnx"
    onnx.save(graph.model(product(graph, graph.rounded("x"))), path)
    record = read_saturation(path, {})
    assert len(record.products) == 1
    assert not record.excluded


def test_a_transposed_product_pairs_what_it_sums() -> None:
    weights = np.zeros((4, 3), np.int8)
    weights[2:, 1] = 127
    graph = Graph((4,))
    (bound,) = bounds(graph.model(graph.product("MatMul", graph.rounded("x"), weights)))
    assert (bound.saturating, bound.worst) == (1, (1,))


def test_a_sum_of_32_bits_can_overflow_too() -> None:
    (bound,) = bounds(one_product(np.full((1, 80_000), 127, np.int8)))
    assert bound.accumulator == FULL * 127 * 80_000 > INT32


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08no ONNX")
    with pytest.raises(BundleError, match=r"model\.onnx is not ONNX"):
        read_saturation(path, {})


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_compute_a_full_range_graph_exactly_once_no_pair_can_saturate(library: str) -> None:
    """The same convolution with and without weights that saturate: what fails before is right after."""
    pytest.importorskip(library)
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (2, 32, 12, 12)).astype(np.float32)
    wide = random.integers(-127, 128, (16, 32, 3, 3)).astype(np.int8)
    for weights, saturates in ((wide, True), (wide // 2, False)):
        model = one_product(weights, side=12, step=2.0**12)
        assert bool(bounds(model)[0].saturating) == saturates
        (exact,) = IntegerReference(model).run({"x": image}).values()
        away = distance(LIBRARIES[library](model, image), exact)
        assert away < 1e-3 if not saturates else away > 0.02 or not saturates_here(library)
        if library == "onnxruntime":
            assert distance(on_onnxruntime(model, image, exact=True), exact) < 1e-3
