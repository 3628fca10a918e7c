"""2:4 sparsity: the pattern, what reads it from a file's bytes in every type, and what is pruned to it."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from fixtures.small import SPEC, model, write_onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper

from vggdeploy.model.formats.sparsity import is_sparse, sparse_products
from vggdeploy.model.layers import layer_names
from vggdeploy.model.weights import new_with_state
from vggdeploy.optimize.steps.sparse import largest_two, pruned_to_2_4, weights_of
from vggdeploy.types import Precision

# [out, in, height, width], or [out, in]; in comes in fours.
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 5).map(lambda n: 4 * n), st.integers(1, 3), st.integers(1, 3))
WEIGHTS = st.one_of(SHAPES, SHAPES.map(lambda s: s[:2])).flatmap(
    lambda shape: arrays.arrays(np.float32, shape, elements=st.floats(-4, 4, width=32).map(lambda v: round(v, 1)))
)
LAYERS = layer_names(SPEC)
NAMES = ["conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2", "fc6", "fc7", "logits"]


@given(WEIGHTS)
@settings(max_examples=200)
def test_two_of_four_inputs_are_kept_and_they_are_the_largest(weights: np.ndarray) -> None:
    mask = largest_two(torch.from_numpy(weights)).numpy()
    assert mask.shape == weights.shape
    assert is_sparse(mask != 0)
    fours = np.moveaxis(weights.reshape(len(weights), -1, 4, *weights.shape[2:]), 2, -1)
    kept = np.moveaxis(mask.reshape(len(weights), -1, 4, *weights.shape[2:]), 2, -1)
    assert (kept.sum(axis=-1) == 2).all()
    smallest_kept = np.where(kept == 1, np.abs(fours), np.inf).min(axis=-1)
    largest_cut = np.where(kept == 0, np.abs(fours), -np.inf).max(axis=-1)
    assert (smallest_kept >= largest_cut).all()


@given(WEIGHTS, st.data())
@settings(max_examples=200)
def test_a_third_weight_in_any_four_breaks_the_pattern(weights: np.ndarray, data: st.DataObject) -> None:
    kept = largest_two(torch.from_numpy(weights)).numpy() != 0
    cut = np.argwhere(~kept)
    kept[tuple(data.draw(st.sampled_from(cut.tolist())))] = True
    assert not is_sparse(kept)


def test_the_fours_are_of_inputs_and_not_of_outputs_or_positions() -> None:
    kept = np.zeros((4, 4, 2, 2), bool)
    kept[:2] = True  # two of four outputs
    assert not is_sparse(kept)
    kept = np.zeros((4, 4, 2, 2), bool)
    kept[:, :, 0] = True  # two of four positions
    assert not is_sparse(kept)
    kept = np.zeros((4, 4, 2, 2), bool)
    kept[:, ::2] = True
    assert is_sparse(kept)


def test_fours_do_not_overlap_and_other_numbers_of_inputs_have_none() -> None:
    kept = np.zeros((1, 8), bool)
    kept[0, 2:6] = True  # four neighbours, two in each four
    assert is_sparse(kept)
    assert not is_sparse(np.zeros((8, 3, 3, 3), bool))
    assert not is_sparse(np.zeros((8, 6), bool))
    assert is_sparse(np.zeros((8, 8), bool))


@pytest.fixture(scope="module")
def pruned() -> dict[str, torch.Tensor]:
    return pruned_to_2_4(model())[0].state_dict()


@pytest.fixture(scope="module")
def files(pruned: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """A dense network's ONNX with the weights of a pruned one, in each type that products have."""
    root = tmp_path_factory.mktemp("sparse")
    dense = onnx.load(write_onnx(root / "dense.onnx", Precision.FP32))
    kinds = {
        Precision.FP32: np.float32,
        Precision.FP16: np.float16,
        Precision.BF16: ml_dtypes.bfloat16,
        Precision.FP8: ml_dtypes.float8_e4m3fn,
        Precision.INT8: np.int8,
    }
    paths = {}
    for precision, kind in kinds.items():
        for tensor in dense.graph.initializer:
            if tensor.name in pruned and pruned[tensor.name].ndim > 1:
                weights = pruned[tensor.name].numpy()
                # Scaled, so that no kept weight is rounded to 0: zeros are counted, and nothing is computed.
                scaled = weights if precision is Precision.FP32 else weights * 100 / np.abs(weights).max()
                scaled = np.where(weights != 0, np.sign(scaled) * np.maximum(np.abs(scaled), 1), -0.0)
                tensor.CopyFrom(numpy_helper.from_array(scaled.astype(kind), tensor.name))
        paths[precision] = root / f"{precision}.onnx"
        onnx.save(dense, paths[precision])
    return paths


@pytest.mark.parametrize("precision", [p for p in Precision if p is not Precision.TF32])
def test_a_files_sparse_layers_are_read_from_its_bytes_in_every_type(files, precision: Precision) -> None:
    """The first layer, of three channels, stays dense; and −0 is a zero, where the type has one."""
    assert list(sparse_products(files[precision], LAYERS)) == NAMES


def test_a_dense_file_has_none(tmp_path: Path) -> None:
    assert sparse_products(write_onnx(tmp_path / "dense.onnx", Precision.FP16), LAYERS) == ()


def test_one_weight_too_many_makes_its_layer_dense_and_no_other(files, tmp_path: Path) -> None:
    found = onnx.load(files[Precision.FP16])
    tensor = next(t for t in found.graph.initializer if t.name == "features.8.weight")
    weights = numpy_helper.to_array(tensor).copy()
    weights[5, :4, 1, 2] = [6e-8, 0, -6e-8, 6e-8]  # FP16's smallest number is not 0
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    onnx.save(found, tmp_path / "one.onnx")
    assert list(sparse_products(tmp_path / "one.onnx", LAYERS)) == [name for name in NAMES if name != "conv3_2"]


def test_pruning_changes_nothing_but_zeros_and_leaves_the_model_alone() -> None:
    dense = model()
    before = {key: tensor.clone() for key, tensor in dense.state_dict().items()}
    small, names = pruned_to_2_4(dense)
    assert list(names) == NAMES
    for key, tensor in small.state_dict().items():
        assert torch.equal(dense.state_dict()[key], before[key])
        assert ((tensor == before[key]) | (tensor == 0)).all()
    assert torch.equal(small.state_dict()["features.0.weight"], before["features.0.weight"])


def test_the_factors_of_a_product_of_low_rank_are_layers_of_their_own() -> None:
    import msgspec

    spec = msgspec.structs.replace(SPEC, arch="custom", ranks=(8, 0))
    from vggdeploy.model.vgg import new_vgg

    made = new_vgg(spec)
    assert [name for name in weights_of(made) if name.startswith("fc6")] == ["fc6.0", "fc6.1"]
    pruned, names = pruned_to_2_4(made)
    assert {"fc6.0", "fc6.1"} <= set(names)
    assert new_with_state(spec, pruned.state_dict(), where="x").spec == spec
