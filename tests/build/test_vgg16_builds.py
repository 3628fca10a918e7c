"""Real builds of VGG-16: each precision, one and several targets, fixed and dynamic batch, and what repeats.

Narrow in the default run; at full width and 224 pixels under ``-m slow``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.small import quantised, write_onnx

from vggdeploy.errors import BuildError
from vggdeploy.model.layers import summarise
from vggdeploy.spec import ModelSpec
from vggdeploy.types import BatchRange, Precision

FP16, FP32, INT8 = Precision.FP16, Precision.FP32, Precision.INT8
NARROW = ModelSpec.named("vgg16", width=0.125, image_size=32, classes=10, hidden=32)
FULL = ModelSpec.named("vgg16")
LAYERS = 13 + 3  # configuration D: thirteen convolutions, three fully connected layers
ALL = ("sm80", "sm86", "sm89", "sm120", "sm121")
BYTES = {FP32: 4, FP16: 2, INT8: 1}


def exported(root: Path, spec: ModelSpec) -> dict[Precision, Path]:
    files = {p: write_onnx(root / f"{p}.onnx", p, spec=spec) for p in (FP32, FP16)}
    return {**files, INT8: quantised(files[FP32], root / "int8.onnx", side=spec.image_size)}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    return exported(tmp_path_factory.mktemp("vgg16"), NARROW)


def check(build, source: Path, precision: Precision, targets: tuple[str, ...], spec: ModelSpec) -> None:
    built, data = build(source, precision=precision, targets=targets)
    assert built.proof.layers == {str(precision): LAYERS}
    assert built.proof.weight_bytes[precision] >= 0.99 * BYTES[precision] * summarise(spec).parameters
    again, same = build(source, precision=precision, targets=targets)
    assert len(same) == len(data)
    # TensorRT for RTX 1.7 numbers intermediate values anew in each build where it does not run a network in FP16 on
    # Ampere or newer: of those engines only the size repeats.
    if precision is FP16 and "sm75" not in targets:
        assert same == data
        assert again.sha256 == built.sha256


@pytest.mark.parametrize("targets", [("sm89",), ALL], ids=["one target", "several targets"])
@pytest.mark.parametrize("precision", [FP32, FP16, INT8])
def test_each_precision_for_one_and_for_several_targets_and_it_repeats(build, narrow, precision, targets):
    check(build, narrow[precision], precision, targets, NARROW)


def test_a_fixed_and_a_dynamic_batch(build, narrow, tmp_path):
    fixed = write_onnx(tmp_path / "fixed.onnx", FP16, fixed_batch=4, spec=NARROW)
    built, _ = build(fixed, profiles=[BatchRange(4, 4, 4)])
    assert built.inputs[0].shape[0] == built.outputs[0].shape[0] == 4
    built, _ = build(narrow[FP16], profiles=[BatchRange(1, 8, 64)])
    assert built.inputs[0].shape[0] == built.outputs[0].shape[0] == "N"


@pytest.mark.parametrize("others", [(), ("sm89",)])
def test_turing_takes_fp16_alone(build, narrow, others):
    """An INT8 network quantised from FP32 holds FP32 products where its scales meet."""
    targets = ("sm75", *others)
    check(build, narrow[FP16], FP16, targets, NARROW)
    for precision in (FP32, INT8):
        with pytest.raises(BuildError, match=r"Turing \(SM75\): FP32 GEMM is not supported"):
            build(narrow[precision], precision=precision, targets=targets)


@pytest.mark.slow
def test_the_full_vgg16_in_every_precision(build, tmp_path):
    for precision, source in exported(tmp_path, FULL).items():
        check(build, source, precision, ALL, FULL)
