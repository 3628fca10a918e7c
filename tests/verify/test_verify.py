"""``verify``: what it looks at, in how much memory, and under which limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.data.loaders import ImageSet
from vggdeploy.parity import reference as spool
from vggdeploy.parity.reference import Spool
from vggdeploy.records import ParityReport, from_json
from vggdeploy.runtime import registry
from vggdeploy.runtime.base import Availability
from vggdeploy.runtime.torch import TorchSession
from vggdeploy.types import Verdict
from vggdeploy.verify import samples
from vggdeploy.verify.verify import VerifyOptions, exit_code, verify_bundle


@pytest.fixture
def folder(digits_test: ImageSet, tmp_path: Path) -> str:
    """120 test digits as one's own images: a folder a class."""
    for index in range(120):
        path = tmp_path / "own" / "test" / str(digits_test.labels[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits_test.images[index, ..., 0]).save(path)
        (other := tmp_path / "own" / "train" / path.parent.name).mkdir(parents=True, exist_ok=True)
        if not (other / "x.png").exists():
            os.link(path, other / "x.png")
    return f"folder:{tmp_path / 'own'}"


def verify(bundle: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, ParityReport]:
    code = run(["verify", str(bundle), "--json", *options])
    return code, from_json(capsys.readouterr().out.encode(), ParityReport, what="the report")


def test_one_backend_alone_can_be_asked_for(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = verify(bundle_dir, capsys, "--backend", "ort", "--samples", "all")
    assert code == 0
    assert {(r.variant, r.backend) for r in report.variants} == {
        (name, "onnxruntime") for name in ("onnx-fp32", "onnx-fp16")
    }
    assert {r.flips.samples for r in report.variants if r.flips} == {32, 359}


@pytest.mark.parametrize(
    ("options", "told", "fix"),
    [
        (["--backend", "onxruntime"], "is unknown", "did you mean 'onnxruntime'"),
        (["--backend", "tensorrt"], "no chosen variant runs on tensorrt", "one: onnxruntime, torch, torchscript"),
        (["--samples", "0"], "--samples is 0", "at least 1, or all"),
        (["--samples", "some"], "--samples is some", "at least 1, or all"),
        (["--samples", "9", "--data", "golden"], "with --data golden", "leave --samples out"),
        (["--max-flips", "-1"], "--max-flips is -1", "percent from 0 to 100"),
        (["--max-flips", "nan"], "--max-flips is nan", "percent from 0 to 100"),
        (["--max-flips", "101"], "--max-flips is 101", "percent from 0 to 100"),
        (["--max-accuracy-drop", "-0.5"], "--max-accuracy-drop is -0.5", "points from 0 to 100"),
        (["--tolerance", "inf"], "--tolerance is inf", "--tolerance 0.001"),
        (["--tolerance", "-1e-3"], "--tolerance is -0.001", "--tolerance 0.001"),
        (["--min-cosine", "2"], "--min-cosine is 2", "from -1 to 1"),
        (["--device", "gpu:x"], "the device 'gpu:x' is unknown", "cuda:INDEX"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error_in_the_options_own_units(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str, fix: str
) -> None:
    assert run(["verify", str(bundle_dir), *options]) == 2
    cause, hint = capsys.readouterr().err.strip().splitlines()
    assert told in cause
    assert fix in hint


def test_images_of_ones_own_prove_too(bundle_dir: Path, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--variant", "onnx-fp16", "--data", folder, "--samples", "all", "--max-flips", "5"]
    code, report = verify(bundle_dir, capsys, *options)
    assert code == 0
    (_, own) = report.variants
    assert own.data == f"{folder} test (120 images)"
    assert own.reference_accuracy and own.reference_accuracy > 0.9


def test_the_golden_pair_alone_says_that_it_promises_nothing(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = verify(bundle_dir, capsys, "--data", "golden")
    assert code == 0
    assert all(r.data.startswith("golden pair") for r in report.variants)
    assert "nothing is promised about flips" in report.notes[0]


def test_without_torch_the_golden_pair_proves_and_the_report_says_why_no_more(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        registry.get_backend("torch").load(), "probe", lambda d: Availability(False, "cpu", "no torch", "x")
    )
    code, report = verify(bundle_dir, capsys, "--backend", "onnxruntime")
    assert code == 0
    assert report.notes == ("only the golden pair was looked at, because the reference cannot run here: no torch",)
    assert run(["verify", str(bundle_dir), "--data", "digits"]) == 5
    assert "the reference cannot run on digits: no torch" in capsys.readouterr().err


def test_nothing_that_ran_is_exit_5(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = verify(bundle_dir, capsys, "--variant", "onnx-fp32", "--device", "cuda:7", "--data", "golden")
    assert code == 5
    assert report.verdict is Verdict.UNPROVEN


def test_a_verdict_is_written_with_the_limits_that_reached_it(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = verify(
        own_bundle, capsys, "--variant", "onnx-fp32", "--samples", "60", "--max-flips", "6", "--record"
    )
    assert code == 0
    manifest = Bundle.open(own_bundle).manifest
    written = manifest.variant("onnx-fp32").parity
    assert written and written.limits and written.limits.flip_rate == 0.06
    assert written.limits.relative_l2 == manifest.thresholds["fp32"].relative_l2
    assert [r.limits for r in report.variants] == [written.limits] * 2
    assert run(["inspect", str(own_bundle)]) == 0
    assert "judged by limits of its own: flip rate 0.06 (the manifest's is 0.01)" in capsys.readouterr().out


def test_a_tolerance_that_nothing_keeps_is_a_failure_that_says_what_would_do(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = verify(bundle_dir, capsys, "--variant", "onnx-fp16", "--tolerance", "0", "--data", "golden")
    assert code == 3
    assert "allclose would have passed with rtol = atol = " in report.variants[0].reasons[0]


def test_what_was_undecided_says_how_many_images_decide_it_and_they_do(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = ["--variant", "onnx-fp32", "--max-accuracy-drop", "1.5"]
    code, report = verify(bundle_dir, capsys, *limit, "--samples", "100")
    assert code == 4
    flips, drop = report.variants[1].reasons
    assert "look at 352 images" in flips
    assert (
        "accuracy may have fallen by 3.47% at one-sided 95% confidence, the limit is 1.50%; look at 234 images" in drop
    )
    code, report = verify(bundle_dir, capsys, *limit, "--samples", "234")
    assert "accuracy" not in " ".join(report.variants[1].reasons)
    code, _ = verify(bundle_dir, capsys, *limit, "--samples", "352")
    assert code == 0


def test_the_reference_runs_once_for_all_variants(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0
    real = TorchSession.run

    def counting(self, feeds):
        nonlocal seen
        seen += len(feeds["image"])
        return real(self, feeds)

    monkeypatch.setattr(TorchSession, "run", counting)
    report = verify_bundle(Bundle.open(bundle_dir), VerifyOptions(samples=352))
    assert exit_code(report) == 0
    # The images, and the golden pair and the stress set against which the reference itself is checked.
    assert seen == 352 + 32 + 12


def test_only_a_few_batches_of_images_are_in_memory_at_once(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, most = weakref.WeakSet(), 0
    real = samples.PreparedImages.__getitem__

    class Watched(np.ndarray):
        pass

    def watching(self, rows: slice) -> np.ndarray:
        nonlocal most
        array = real(self, rows)
        assert len(array) <= 256  # a batch: the largest that is promised
        watched = array.view(Watched)
        alive.add(watched)
        most = max(most, len(alive))
        return watched

    # A weak set compares; arrays do not compare as wholes.
    Watched.__hash__ = object.__hash__
    Watched.__eq__ = object.__eq__
    monkeypatch.setattr(samples.PreparedImages, "__getitem__", watching)
    verify_bundle(Bundle.open(bundle_dir), VerifyOptions(samples=None, variants=["onnx-fp32"]))
    assert 1 <= most <= 8


@pytest.mark.parametrize("in_memory", [1, 10**9])
def test_a_spool_gives_back_what_was_put_in(in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", in_memory)
    whole = np.random.default_rng(0).normal(size=(50, 3, 4)).astype(np.float32)
    kept = Spool((3, 4), "float32")
    for start in range(0, 50, 7):
        kept.append(whole[start : start + 7])
    assert len(kept) == 50
    for part in (slice(0, 50), slice(3, 20), slice(48, 60), slice(50, 60)):
        np.testing.assert_array_equal(kept[part], whole[part])
    with pytest.raises(ValueError, match="in their order"):
        kept[::2]


_PEAK = """
import sys
from vggdeploy.bench.interference import peak_rss
from vggdeploy.bundle import Bundle
from vggdeploy.verify.verify import VerifyOptions, verify_bundle
options = VerifyOptions(data=sys.argv[2], samples=int(sys.argv[3]), variants=["onnx-fp32"])
report = verify_bundle(Bundle.open(sys.argv[1]), options)
assert report.variants[-1].flips.samples == int(sys.argv[3]), report
print(peak_rss() // 2**20)
"""


@pytest.mark.slow
def test_sixteen_times_as_many_images_take_no_more_memory(tmp_path: Path) -> None:
    """3,200 images of 128 × 128 × 3 would be 157 MB as pixels; with 200 they are 10."""
    from vggdeploy.bundle.checkpoint import Checkpoint
    from vggdeploy.export.bundle import ExportOptions, export_bundle
    from vggdeploy.model.vgg import new_vgg
    from vggdeploy.model.weights import save_checkpoint
    from vggdeploy.spec import ModelSpec, PreprocessSpec

    spec = ModelSpec.named("vgg11", width=0.0625, in_channels=3, classes=2, image_size=128, hidden=16)
    preprocess = PreprocessSpec(resize=128, crop=128)
    about = Checkpoint(spec=spec, preprocess=preprocess, labels=("a", "b"))
    save_checkpoint(tmp_path / "checkpoint", new_vgg(spec, seed=1), about)
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(formats=["onnx-fp32"]))
    random = np.random.default_rng(0)
    for label in "ab":
        for part in ("train", "test"):
            (tmp_path / "data" / part / label).mkdir(parents=True)
        first = tmp_path / "data/train" / label / "x.png"
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(first)
        for index in range(1600):
            os.link(first, tmp_path / "data/test" / label / f"{index}.png")

    def peak(count: int) -> int:
        args = [sys.executable, "-c", _PEAK, str(bundle.root), f"folder:{tmp_path / 'data'}", str(count)]
        done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=150)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    few, many = peak(200), peak(3200)
    print(json.dumps({"MB at 200": few, "MB at 3200": many}))
    assert many <= few + 32
