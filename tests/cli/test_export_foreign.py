"""Weights that were never trained here become a bundle that computes what the original computes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import VGG, make_layers

import vggdeploy
from vggdeploy.bundle import MANIFEST_NAME, Bundle
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.cli.app import run
from vggdeploy.export.source import read_labels
from vggdeploy.model.vgg import new_vgg
from vggdeploy.model.weights import save_checkpoint
from vggdeploy.parity.pixels import IMAGES
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.files import atomic_directory
from vggdeploy.verify import samples
from vggdeploy.verify.samples import synthetic_images

pytestmark = pytest.mark.late

IMAGENET = VGG16_Weights.IMAGENET1K_V1


def filled(net: nn.Module) -> nn.Module:
    """Random weights with which the logits are of the size of trained ones; batch norms that are not the identity."""
    net = net.to_empty(device="cpu").eval()
    # A million numbers again and again: 133 million of them take seconds to draw.
    numbers = torch.rand(1_000_003, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name, tensor in net.state_dict().items():
        tensor.copy_(numbers.repeat(tensor.numel() // len(numbers) + 1)[: tensor.numel()].reshape(tensor.shape))
        if tensor.ndim > 1:
            tensor.mul_((6 / tensor[0].numel()) ** 0.5)  # He et al. 2015, uniform
        elif name.endswith("running_var") or (name.startswith("features") and name.endswith("weight")):
            tensor.mul_(0.5).add_(1)  # of a batch norm
        elif tensor.is_floating_point():
            tensor.mul_(0.1)
    return net


def torchvisions(arch: str, *, hidden: int = 4096) -> nn.Module:
    """torchvision's network as its builder makes it, or with narrower fc6 and fc7: half a gigabyte less to move."""
    with torch.device("meta"):
        net = torchvision.models.get_model(arch, init_weights=False)
        if hidden != 4096:
            for index, (inputs, outputs) in {0: (25088, hidden), 3: (hidden, hidden), 6: (hidden, 1000)}.items():
                net.classifier[index] = nn.Linear(inputs, outputs)
    return filled(net)


def small_net(classes: int = 5, channels: int = 3) -> nn.Module:
    """torchvision's class, narrow."""
    with torch.device("meta"):
        net = VGG(
            make_layers([8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"], batch_norm=True), init_weights=False
        )
        net.classifier = nn.Sequential(
            nn.Linear(64 * 49, 24), nn.ReLU(True), nn.Dropout(), nn.Linear(24, 16), nn.ReLU(True), nn.Dropout(),
            nn.Linear(16, classes),
        )  # fmt: skip
        net.features[0] = nn.Conv2d(channels, 8, 3, padding=1)
    return filled(net)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Half a gigabyte of weights lies here, for as long as this file's tests run."""
    home = tmp_path_factory.mktemp("weights")
    yield home
    for path in home.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def small(home: Path) -> Path:
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in small_net().state_dict().items()}, "epoch": 9}, home / "s.pth"
    )
    return home / "s.pth"


def normalised(images: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    transform = IMAGENET.transforms()
    return (pixels - torch.tensor(transform.mean).reshape(3, 1, 1)) / torch.tensor(transform.std).reshape(3, 1, 1)


def distance(logits: np.ndarray, expected: torch.Tensor) -> float:
    """Relative L2."""
    delta = np.linalg.norm(logits.astype(np.float64) - expected.double().numpy())
    return float(delta / np.linalg.norm(expected.double().numpy()))


def exported(source: str | Path, bundle: Path, *options: object) -> Bundle:
    arguments = ["export", str(source), "-o", str(bundle), "--formats", "onnx-fp32", *map(str, options)]
    assert run(arguments) == 0
    return Bundle.open(bundle)


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.strip().splitlines()


def test_torchvisions_vgg11_from_a_file_is_a_bundle_with_its_logits_preprocessing_and_labels(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "GOLDEN_BYTES", 2 * 224 * 224 * 3)  # two images: the usual 27 take ten seconds
    net = torchvisions("vgg11", hidden=64)
    torch.save(net.state_dict(), home / "vgg11.pth")
    bundle = exported("torchvision:vgg11", tmp_path / "bundle", "--weights", home / "vgg11.pth")
    manifest = bundle.manifest
    assert manifest.spec == ModelSpec.named("vgg11", hidden=64)
    assert manifest.preprocess == PreprocessSpec(
        resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    assert manifest.labels == tuple(IMAGENET.meta["categories"])
    with Image.open(IMAGES / "rgb-portrait.png") as image, torch.inference_mode():
        expected = net(IMAGENET.transforms()(image.convert("RGB"))[None])
    best = [IMAGENET.meta["categories"][i] for i in expected[0].topk(3).indices]
    with vggdeploy.load(tmp_path / "bundle", backend="onnxruntime") as engine:
        answers = engine.classify(IMAGES / "rgb-portrait.png", top=3)
        images = synthetic_images(2, manifest.preprocess)
        logits = engine.run({"image": images})["logits"]
    assert [answer.label for answer in answers] == best
    with torch.inference_mode():
        assert distance(logits, net(normalised(images))) < 1e-5


def test_torchvisions_vgg11_bn_at_64_pixels_computes_what_its_adaptive_pool_makes_of_them(
    home: Path, tmp_path: Path
) -> None:
    net = torchvisions("vgg11_bn")
    torch.save(net.state_dict(), home / "vgg11_bn.pth")
    bundle = exported(home / "vgg11_bn.pth", tmp_path / "bundle", "--arch", "vgg11_bn", "--image-size", 64)
    assert bundle.manifest.spec == ModelSpec.named("vgg11_bn", image_size=64)
    assert bundle.manifest.labels == ()
    images = synthetic_images(4, bundle.manifest.preprocess)
    with vggdeploy.load(tmp_path / "bundle", backend="onnxruntime") as engine, torch.inference_mode():
        assert distance(engine.run({"image": images})["logits"], net(normalised(images))) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["vgg11", "vgg16", "vgg19_bn"])
def test_every_format_of_the_large_ones(home: Path, tmp_path: Path, arch: str) -> None:
    net = torchvisions(arch)
    torch.save(net.state_dict(), home / f"{arch}.pth", _use_new_zipfile_serialization=False)  # as torchvision's are
    source = ["export", f"torchvision:{arch}", "--weights", str(home / f"{arch}.pth"), "-o", str(tmp_path / "bundle")]
    assert run(source) == 0
    images = synthetic_images(2, PreprocessSpec())
    with torch.inference_mode():
        expected = net(normalised(images))
    for variant in ("onnx-fp32", "torchscript-fp32", "onnx-fp16"):
        with vggdeploy.load(tmp_path / "bundle", variant=variant) as engine:
            found = engine.run({"image": images})["logits"]
        assert distance(found, expected) < (1e-2 if "fp16" in variant else 1e-5), variant


def test_what_was_found_used_and_assumed_is_said(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = exported(small, tmp_path / "bundle", "--image-size", 32)
    said = "\n".join(told(capsys))
    assert f"weights: 62 tensors, 147,981 numbers from {small} (layout: torchvision)" in said
    assert "there, and not used: epoch" in said
    assert "the prefix 'module.' was cut off its keys" in said
    assert "preprocessing is not in the file; taken: shorter side to 37 px, centre 32 × 32, mean (0.485, 0.456" in said
    record = json.loads((bundle.root / "checkpoint" / "checkpoint.json").read_text())
    assert record["training"]["weights"]["unused"] == ["epoch"]
    assert len(record["training"]["weights"]["sha256"]) == 64
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"], "the scratch directory was left behind"


def test_labels_and_preprocessing_can_be_given(small: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\nold cow\n魚\nelk\n\n", encoding="utf-8")
    given = ["--labels", tmp_path / "labels.txt", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.5", "--resize", 32]
    manifest = exported(small, tmp_path / "bundle", "--image-size", 32, "--interpolation", "bicubic", *given).manifest
    assert manifest.labels == ("cat", "dog", "old cow", "魚", "elk")
    assert manifest.preprocess == PreprocessSpec(
        resize=32, crop=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.5), interpolation="bicubic"
    )
    (tmp_path / "labels.json").write_text('["a", "b"]')
    assert read_labels(tmp_path / "labels.json") == ("a", "b")


def test_grey_weights_make_a_grey_bundle_once_their_normalisation_is_given(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(small_net(channels=1).state_dict(), home / "grey.pth")
    assert run(["export", str(home / "grey.pth"), "-o", str(tmp_path / "b"), "--image-size", "32"]) == 2
    assert "--mean 0.5 --std 0.5" in told(capsys)[-1]
    bundle = exported(home / "grey.pth", tmp_path / "b", "--image-size", 32, "--mean", 0.3, "--std", 0.35)
    assert (bundle.manifest.preprocess.mode, bundle.manifest.input.shape) == ("L", ("N", 32, 32, 1))


@pytest.mark.parametrize(
    ("options", "code", "answer"),
    [
        (["--arch", "vgg16_bn"], 1, "is not vgg16_bn at any width: 8 convolutions of 8 … 64 channels"),
        (["--arch", "vgg11"], 1, "has batch norm, so it is no vgg11"),
        (["--arch", "vgg11b"], 2, "did you mean 'vgg11'"),
        (["--image-size", "16"], 2, "give a multiple of 32, at least 32"),
        (["--image-size", "0"], 2, "give a multiple of 32, at least 32"),
        (["--blocks", "1x8,1x16"], 1, "not (8, 16)"),
        (["--blocks", "8,16"], 2, "for example 1x64,1x128,2x256"),
        (["--mean", "a,b"], 2, "is not a list of numbers"),
        (["--mean", "0.5,0.5"], 2, "mean/std of 2/3 channels"),
        (["--mean", "123.675,116.28,103.53", "--std", "58.395,57.12,57.375"], 2, "0.485,0.456,0.406 and 0.229,0.224"),
        (["--std", "0,1,1"], 2, "std above 0"),
        (["--resize", "20"], 2, "crop 224 does not fit resize 20"),
        (["--interpolation", "bilinaer"], 2, "did you mean 'bilinear'"),
        (["--weights", "other.pth"], 2, "vggdeploy export torchvision:vgg16 --weights other.pth"),
        (["--labels", "none.txt"], 1, "none.txt cannot be read: No such file"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_options_that_the_weights_deny_are_one_error_and_leave_nothing(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, answer: str
) -> None:
    assert run(["export", str(small), "-o", str(tmp_path / "bundle"), *options]) == code
    lines = told(capsys)
    assert len(lines) == 2
    assert answer in " ".join(lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (b"a\nb\nc\n", "has 3 labels, and"),
        (b"a\n\nc\nd\ne\n", "has no label on line 2"),
        (b"", "has 0 labels"),
        (b"\xff\xfe\x00", "is not a list of labels"),
        (b'["a", "b", 3, "d", "e"]', "is not a list of labels"),
        (b'["a", "b"', "is not a list of labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, answer: str
) -> None:
    (tmp_path / "labels").write_bytes(content)
    assert run(["export", str(small), "-o", str(tmp_path / "b"), "--labels", str(tmp_path / "labels")]) == 1
    assert answer in told(capsys)[0]


@pytest.mark.parametrize(
    ("source", "options", "code", "answer"),
    [
        ("torchvision:vgg16", ["--arch", "vgg11"], 2, "torchvision:vgg16 is a vgg16, not a vgg11"),
        (
            "torchvision:vgg16",
            ["--blocks", "1x64"],
            2,
            "--blocks was given, and torchvision:vgg16 has blocks of its own",
        ),
        ("torchvision:vgg16", ["--weights", "none.pth"], 1, "none.pth cannot be read"),
        ("torchvision:IMAGENET1K_V1", [], 2, "give a name that does, such as torchvision:vgg16"),
        ("torchvision:IMAGENET1K_FEATURES", ["--arch", "vgg16"], 2, "no classifier that works, only features"),
        ("torchvision:vgg17", [], 2, "did you mean 'vgg1"),
        ("vgg16", [], 2, "torchvision:vgg16"),
        ("none.pth", [], 1, "does not exist"),
    ],
)
def test_a_source_that_names_nothing_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, options: list[str], code: int, answer: str
) -> None:
    assert run(["export", source, "-o", str(tmp_path / "bundle"), *options]) == code
    lines = told(capsys)
    assert len(lines) == 2
    assert answer in " ".join(lines)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_other_classes_are_not_torchvisions(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "torchvision:vgg11_bn", "--weights", str(small), "-o", str(tmp_path / "b")]) == 1
    lines = told(capsys)
    assert "has 5 classes, and torchvision:vgg11_bn has 1000" in lines[0]
    assert f"vggdeploy export {small} --arch vgg11_bn --labels FILE" in lines[1]


def test_offline_the_export_names_both_remedies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models._api import WeightsEnum

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(WeightsEnum, "url", property(lambda self: "http://127.0.0.1:9/vgg16-397923af.pth"))
    assert run(["export", "torchvision:vgg16", "-o", str(tmp_path / "b")]) == 1
    *_, cause, fix = told(capsys)
    assert "torchvision:vgg16 cannot be downloaded" in cause
    assert f"download vgg16-397923af.pth elsewhere, then put it into {tmp_path / 'hub' / 'checkpoints'}" in fix
    assert "--weights FILE" in fix
    assert not (tmp_path / "b").exists()


def test_a_checkpoint_does_not_take_options_about_foreign_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = ModelSpec.named("vgg11", width=0.125, classes=3, image_size=32, hidden=8)
    checkpoint = tmp_path / "ckpt"
    save_checkpoint(
        checkpoint, new_vgg(spec), Checkpoint(spec=spec, preprocess=PreprocessSpec(resize=32, crop=32), labels=())
    )
    arguments = ["export", str(checkpoint), "-o", str(tmp_path / "b"), "--arch", "vgg16", "--mean", "0.5"]
    assert run(arguments) == 2
    assert "--arch, --mean cannot change a checkpoint" in told(capsys)[0]


def test_a_file_that_wants_to_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({**small_net().state_dict(), "x": Evil()}, tmp_path / "evil.pth")
    assert run(["export", str(tmp_path / "evil.pth"), "-o", str(tmp_path / "b")]) == 1
    assert "it asks to run posix.system, and was refused" in told(capsys)[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pth"]


def test_an_interrupted_export_leaves_nothing(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(checkpoint: Path, *args: object, **options: object) -> None:
        assert (checkpoint / "model.safetensors").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr("vggdeploy.export.bundle.export_bundle", interrupted)
    assert run(["export", str(small), "-o", str(tmp_path / "bundle"), "--image-size", "32"]) == 130
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_leaves_the_next_writer_removes(small: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from vggdeploy.cli.app import main; import vggdeploy.export.bundle as export\n"
        "export.export_bundle = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "main(sys.argv[1:])"
    )
    arguments = ["export", str(small), "-o", str(tmp_path / "bundle"), "--image-size", "32"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".bundle.tmp-")
    with atomic_directory(tmp_path / "bundle", marker=MANIFEST_NAME, overwrite=False):
        assert not left.exists()
