"""Between the hash and the library a writer gives a file other bytes: the answer comes from those that were hashed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino as ov
import pytest
import safetensors.torch
import torch
from attacks.swapping import SWAPS, swap_before

import vggdeploy
from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.bundle.sign import sign_bundle
from vggdeploy.bundle.signature import new_key
from vggdeploy.bundle.trust import POLICY_VARIABLE, Trust
from vggdeploy.errors import IntegrityError
from vggdeploy.export.openvino import openvino_variant
from vggdeploy.types import Precision
from vggdeploy.verify.readback import read_products

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
# The variant, and what its library is called with.
OPENED: dict[str, tuple[Any, str]] = {
    "torch-fp32": (safetensors.torch, "load_file"),
    "onnx-fp32": (onnxruntime, "InferenceSession"),
    "onnx-fp16": (onnxruntime, "InferenceSession"),
    "torchscript-fp32": (torch.jit, "load"),
    "openvino-fp32": (ov.Core, "compile_model"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(own_bundle: Path) -> Path:
    bundle = Bundle.open(own_bundle)
    with update_bundle(bundle) as draft:
        on_openvino = openvino_variant(bundle.manifest.variant("onnx-fp32"), Precision.FP32)
        draft.manifest = bundle.manifest.with_variants(on_openvino)
    return own_bundle


def answer(root: Path, variant: str, **how: Any) -> np.ndarray:
    with vggdeploy.load(root, variant=variant, verify="never", **how) as engine:
        return np.asarray(engine.run({"image": IMAGES})["logits"])


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("variant", OPENED)
def test_a_file_that_is_swapped_when_its_library_opens_it_answers_as_it_was(
    root: Path, variant: str, swap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer(root, variant)
    bundle = Bundle.open(root)
    path = bundle.main_file(bundle.manifest.variant(variant)).path
    calls = swap_before(monkeypatch, *OPENED[variant], lambda: SWAPS[swap](path))
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(root.parent / "another"))
    np.testing.assert_array_equal(answer(root, variant), expected)
    assert calls
    with pytest.raises(IntegrityError):
        answer(root, variant)


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("variant", OPENED)
def test_an_open_engine_does_not_see_what_becomes_of_its_file(root: Path, variant: str, swap: str) -> None:
    bundle = Bundle.open(root)
    path = bundle.main_file(bundle.manifest.variant(variant)).path
    expected = answer(root, variant)
    with vggdeploy.load(root, variant=variant, verify="never") as engine:
        SWAPS[swap](path)
        np.testing.assert_array_equal(engine.run({"image": IMAGES})["logits"], expected)


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("variant", OPENED)
def test_a_signed_bundle_under_a_policy_answers_from_the_signed_bytes(
    root: Path, tmp_path: Path, variant: str, swap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_key(tmp_path / "release.pem")
    sign_bundle(root, tmp_path / "release.pem")
    policy = tmp_path / "policy.toml"
    policy.write_text('schema_version = 1\ntrusted_keys = ["release.pub"]\n')
    monkeypatch.setenv(POLICY_VARIABLE, str(policy))
    expected = answer(root, variant)
    bundle = Bundle.open(root)
    path = bundle.main_file(bundle.manifest.variant(variant)).path
    calls = swap_before(monkeypatch, *OPENED[variant], lambda: SWAPS[swap](path))
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(root.parent / "another"))
    np.testing.assert_array_equal(answer(root, variant, trust=Trust([tmp_path / "release.pub"])), expected)
    assert calls


@pytest.mark.parametrize("swap", SWAPS)
def test_the_golden_pair_is_the_manifest_s_or_refused(root: Path, swap: str) -> None:
    bundle = Bundle.open(root)  # every hash is right
    SWAPS[swap](bundle.path(bundle.manifest.golden.inputs["image"]))
    with pytest.raises(IntegrityError):
        bundle.golden()


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("variant", ["onnx-fp32", "torchscript-fp32"])
def test_what_is_read_back_is_the_manifest_s_or_refused(root: Path, variant: str, swap: str) -> None:
    bundle = Bundle.open(root)
    chosen = bundle.manifest.variant(variant)
    SWAPS[swap](bundle.path(chosen.path))
    with pytest.raises(IntegrityError):
        read_products(bundle, chosen)


@pytest.mark.parametrize("variant", OPENED)
@pytest.mark.parametrize("swap", SWAPS)
def test_a_writer_who_never_rests_gets_no_byte_in(
    root: Path, variant: str, swap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread changes the file and puts it back, over and over, while it is loaded again and again."""
    expected = answer(root, variant)
    bundle = Bundle.open(root)
    path = bundle.main_file(bundle.manifest.variant(variant)).path
    good = path.read_bytes()
    done, swapped = threading.Event(), _counted(lambda: SWAPS[swap](path))

    def write() -> None:
        while not done.is_set():
            swapped()
            if swap == "in place":
                with path.open("r+b") as file:
                    file.write(good)
            else:
                new = path.with_name(".good")
                new.write_bytes(good)
                new.replace(path)

    writer = threading.Thread(target=write)
    writer.start()
    loaded = refused = 0
    try:
        for turn in range(40):
            monkeypatch.setenv("VGGDEPLOY_CACHE", str(root.parent / f"cache-{turn}"))
            try:
                found = answer(root, variant)
            except IntegrityError:
                refused += 1
                continue
            np.testing.assert_array_equal(found, expected)
            loaded += 1
    finally:
        done.set()
        writer.join()
    assert swapped.calls > 40  # type: ignore[attr-defined]
    assert loaded + refused == 40


def _counted(call: Callable[[], None]) -> Callable[[], None]:
    def counted() -> None:
        counted.calls += 1  # type: ignore[attr-defined]
        call()

    counted.calls = 0  # type: ignore[attr-defined]
    return counted
