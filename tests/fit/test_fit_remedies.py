"""What helps against a backbone that cannot be used is something that `fit` or another command takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import save_file

from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.cli.app import app, run
from vggdeploy.data.sources import default_preprocess
from vggdeploy.fit.material import Material
from vggdeploy.fit.starts import Backbone
from vggdeploy.model.vgg import new_vgg
from vggdeploy.model.weights import save_checkpoint
from vggdeploy.spec import CUSTOM, ModelSpec
from vggdeploy.types import silent

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def stack(*channels: int) -> dict[str, torch.Tensor]:
    """Weights of convolutions, whose keys do not say where pools stand."""
    found = {}
    for at, (inputs, outputs) in enumerate(zip((1, *channels), channels, strict=False)):
        found[f"features.{at}.weight"] = torch.zeros(outputs, inputs, 3, 3)
        found[f"features.{at}.bias"] = torch.zeros(outputs)
    return found


def apart(*channels: int) -> dict[str, torch.Tensor]:
    """The same with room between them, in which anything can stand."""
    return {re.sub(r"\d+", lambda at: str(4 * int(at[0])), name, count=1): t for name, t in stack(*channels).items()}


def write(place: Path, kind: str) -> str:
    """A backbone that cannot be used, by what is wrong with it; what `--init` is given."""
    file = place / "odd.safetensors"
    vgg11 = (8, 16, 32, 32, 64, 64, 64, 64)
    if kind == "text":
        file.write_text("no weights")
    elif kind == "empty":
        file.touch()
    elif kind == "keras":
        (place / "odd.keras").write_bytes(b"PK\x03\x04" + bytes(100))
        return str(place / "odd.keras")
    elif kind == "checkpoint of the same pictures":
        spec = ModelSpec.named("vgg11", width=0.125, in_channels=1, classes=10, image_size=32)
        about = Checkpoint(
            spec=spec, preprocess=default_preprocess("digits", 32), labels=tuple("0123456789"), dataset="digits"
        )
        save_checkpoint(place / "same", new_vgg(spec), about)
        return str(place / "same")
    elif kind == "directory":
        (place / "nothing").mkdir()
        return str(place / "nothing")
    elif kind.startswith("torchvision:") or kind in ("vgg16", "missing.pth"):
        return kind
    else:
        weights = {
            "pools are nowhere": stack(8, 24, 16),
            "pools may be anywhere": apart(8, 24, 16),
            "more layers between": apart(*vgg11),
            "colour": {"features.0.weight": torch.zeros(8, 3, 3, 3), "features.0.bias": torch.zeros(8)},
            "a ResNet": {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)},
            "no chain": {**stack(8, 16), "features.1.weight": torch.zeros(16, 9, 3, 3)},
        }
        save_file(weights[kind], file)
    return str(file)


@pytest.mark.parametrize(
    "kind",
    [
        "text", "empty", "keras", "directory", "checkpoint of the same pictures", "missing.pth", "vgg16", "torchvision:",
        "torchvision:IMAGENET1K_V1", "torchvision:vgg17", "pools are nowhere", "pools may be anywhere",
        "more layers between", "colour", "a ResNet", "no chain",
    ],
)  # fmt: skip
def test_every_remedy_of_a_backbone_is_taken(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggdeploy.fit.fit.Trials", lambda *_: pytest.fail("the backbone was taken"))
    given = write(tmp_path, kind)
    line = ["fit", "digits", "-o", str(tmp_path / "b"), "--min-accuracy", "30", "--init", given, "--budget", "1"]
    assert run(line) in (1, 2)
    [fix] = [text for text in capsys.readouterr().err.splitlines() if text.startswith("  fix:")]
    whole = re.findall(r"vggdeploy [^;()]*", fix)
    for command in whole:
        _, verb, *rest = shlex.split(command)
        COMMANDS[verb].make_context(verb, rest)  # raises for what it does not take
    mine = {name for parameter in COMMANDS["fit"].params for name in parameter.opts}
    beside = re.sub(r"vggdeploy [^;()]*", "", fix)
    assert set(re.findall(r"--[a-z-]+", beside)) <= mine
    assert not (tmp_path / "b").exists()


@pytest.mark.late
def test_a_remedy_that_is_followed_makes_a_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = ModelSpec(
        arch=CUSTOM,
        blocks=((8,), (16, 16), (24,)),
        batch_norm=False,
        in_channels=1,
        classes=7,
        image_size=32,
        hidden=(),
    )
    save_file(dict(new_vgg(spec).state_dict()), tmp_path / "odd.safetensors")  # whose keys leave room for pools
    line = ["fit", "digits", "-o", str(tmp_path / "b"), "--min-accuracy", "30", "--budget", "1"]
    assert run([*line, "--init", str(tmp_path / "odd.safetensors")]) == 1
    [command] = re.findall(r"vggdeploy export .*", capsys.readouterr().err)
    told = shlex.split(command.replace("BUNDLE", str(tmp_path / "made")))[1:]
    assert run([*told, "--mean", "0.5", "--std", "0.5", "--formats", "onnx-fp32"]) == 0
    material = Material.of("digits", None, seed=0, on_progress=silent)
    found = Backbone.of(str(tmp_path / "made"), material)
    assert found.model.spec.blocks == spec.blocks
