"""The verbs in Python: each returns what its command prints, and a slip gets the closest name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vggdeploy
from vggdeploy import Bundle, UsageError
from vggdeploy.types import BatchRange, Verdict


@pytest.mark.late
def test_from_training_to_a_measured_bundle(tmp_path: Path) -> None:
    seen: list[int] = []
    result = vggdeploy.train(
        tmp_path / "ckpt", "modern", dataset="digits", image_size=32, width=0.05, hidden=16, epochs=1, per_class=20,
        batch_size=64, threads=1, on_step=lambda now: seen.append(now.step),
    )  # fmt: skip
    assert result.training.recipe.per_class == 20
    assert seen[-1] == max(seen) >= 4
    with pytest.raises(UsageError, match="already exists"):
        vggdeploy.train(tmp_path / "ckpt", width=0.05, hidden=16)
    bundle = vggdeploy.export(tmp_path / "ckpt", tmp_path / "bundle", formats=["onnx-fp32"], batch=4, samples=20)
    assert isinstance(bundle, Bundle)
    variant = bundle.manifest.variant("onnx-fp32")
    assert variant.batch == BatchRange(1, 4, 4)
    report = vggdeploy.verify(bundle, variants=["onnx-fp32"], data="golden", device="cpu")
    assert report.verdict is Verdict.PASS
    measured = vggdeploy.bench(tmp_path / "bundle", variants=["onnx-fp32"], batches=[1], seconds=0.05, threads=1)
    assert [(row.variant, row.batch) for row in measured.rows] == [("onnx-fp32", 1)]


@pytest.mark.late
def test_weights_from_elsewhere_are_exported_by_path(checkpoint: Path, tmp_path: Path) -> None:
    bundle = vggdeploy.export(
        checkpoint / "model.safetensors", tmp_path / "bundle", formats=["onnx-fp32"], mean=(0.5,), std=(0.5,), image_size=32,
    )  # fmt: skip
    assert bundle.manifest.preprocess.mean == (0.5,)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: vggdeploy.train("out", widht=0.5), r"option 'widht' is unknown — did you mean 'width'\?"),
        (lambda: vggdeploy.train("out", "clasic"), r"recipe 'clasic' is unknown — did you mean 'classic'\?"),
        (lambda: vggdeploy.train("out", resume=True), "there is no run to resume"),
        (lambda: vggdeploy.export("a", "b", overwright=True), r"did you mean 'overwrite'\?"),
        (lambda: vggdeploy.verify("a", sample=3), r"did you mean 'samples'\?"),
        (lambda: vggdeploy.bench("a", batch=3), r"did you mean 'batches'\?"),
    ],
)
def test_a_slip_gets_the_closest_name(call, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        call()


TYPED = """
from typing import assert_type
import vggdeploy
from vggdeploy.records import BenchReport, ParityReport
from vggdeploy.train.record import TrainingResult

assert_type(vggdeploy.train("ckpt", width=0.25), TrainingResult)
assert_type(vggdeploy.export("ckpt", "bundle"), vggdeploy.Bundle)
assert_type(vggdeploy.verify("bundle"), ParityReport)
assert_type(vggdeploy.bench("bundle", threads=1), BenchReport)
vggdeploy.export()  # type: ignore[call-arg]
"""


@pytest.mark.late
def test_type_checkers_see_the_functions(tmp_path: Path) -> None:
    file = tmp_path / "use.py"
    file.write_text(TYPED)
    root = Path(vggdeploy.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "--follow-imports", "silent", file],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
