"""What a user says about weights from elsewhere: units that are wrong are refused, what is doubtful is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model.foreign_nets import textbook_net, torchvision_net

from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, read_checkpoint
from vggdeploy.cli.app import run
from vggdeploy.errors import CheckpointError, UsageError
from vggdeploy.export.source import SourceOptions, import_weights


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "grey.pth"
    torch.save(textbook_net().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "colour.pth"
    torch.save(torchvision_net().state_dict(), path)
    return path


def test_a_mean_of_0_to_255_is_refused_and_the_numbers_that_are_offered_work(
    grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["export", str(grey), "-o", str(tmp_path / "b"), "--formats", "onnx-fp32", "--samples", "8"]
    assert run([*line, "--mean", "76", "--std", "80"]) == 2
    told = capsys.readouterr().err
    assert "0.298 and 0.314" in told
    assert "--mean 0 --std 1" in told
    assert not (tmp_path / "b").exists()
    assert run([*line, "--mean", "0.29804", "--std", "0.31373"]) == 0


def test_one_number_stands_for_every_channel(colour: Path, tmp_path: Path) -> None:
    import_weights(str(colour), tmp_path / "c", SourceOptions(mean=(0.0,), std=(1.0,), resize=256))
    found = read_checkpoint(tmp_path / "c").preprocess
    assert (found.mean, found.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    with pytest.raises(UsageError, match="mean/std of 2/3 channels"):
        import_weights(str(colour), tmp_path / "d", SourceOptions(mean=(0.5, 0.5)))


@pytest.mark.parametrize(
    ("mean", "std", "doubt"),
    [
        ((0.229, 0.224, 0.225), (0.485, 0.456, 0.406), "make sure that the two are not swapped"),
        ((0.408, 0.458, 0.485), (0.0039216,) * 3, "in the order B, G, R"),
        ((0.485, 0.458, 0.408), (0.0039216,) * 3, ""),
        ((0.5,) * 3, (0.5,) * 3, ""),
        ((0.5,) * 3, (1.0,) * 3, ""),
        ((0.0,) * 3, (0.25,) * 3, ""),
    ],
)
def test_what_looks_like_a_slip_is_said(
    colour: Path, tmp_path: Path, mean: tuple[float, ...], std: tuple[float, ...], doubt: str
) -> None:
    notes = import_weights(str(colour), tmp_path / "c", SourceOptions(mean=mean, std=std, resize=256)).notes[1:]
    assert len(notes) == bool(doubt)
    assert doubt in "".join(notes)


def test_without_a_mean_the_report_says_what_totensor_alone_needs(colour: Path, tmp_path: Path) -> None:
    notes = import_weights(str(colour), tmp_path / "c").notes
    assert "trained with ToTensor alone: --mean 0 --std 1" in notes[-1]


def test_classes_without_names_are_said_to_have_none(colour: Path, tmp_path: Path) -> None:
    told = import_weights(str(colour), tmp_path / "c", SourceOptions(mean=(0.5,), std=(0.5,), resize=256))
    classes = read_checkpoint(tmp_path / "c").spec.classes
    assert told.notes == (f"its {classes} classes have no names: answers are numbers (name them: --labels FILE)",)
    (tmp_path / "labels.txt").write_text("\n".join(f"class {index}" for index in range(classes)))
    about = SourceOptions(labels=tmp_path / "labels.txt", mean=(0.5,), std=(0.5,), resize=256)
    assert import_weights(str(colour), tmp_path / "d", about).notes == ()


def test_a_thousand_classes_may_be_imagenets_and_get_its_names(tmp_path: Path) -> None:
    torch.save(torchvision_net(classes=1000).state_dict(), tmp_path / "net.pth")
    options = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "resize": 256}
    [note] = import_weights(str(tmp_path / "net.pth"), tmp_path / "c", SourceOptions(**options)).notes
    assert "its 1,000 classes have no names" in note
    assert "--labels imagenet, if they are ImageNet's in their usual order" in note
    about = SourceOptions(labels=Path("imagenet"), **options)
    assert import_weights(str(tmp_path / "net.pth"), tmp_path / "d", about).notes == ()
    labels = read_checkpoint(tmp_path / "d").labels
    assert (labels[0], labels[281], len(labels)) == ("tench", "tabby", 1000)


def test_a_checkpoint_with_such_a_mean_is_refused_with_the_numbers(grey: Path, tmp_path: Path) -> None:
    import_weights(str(grey), tmp_path / "c", SourceOptions(mean=(0.25,), std=(0.5,)))
    file = tmp_path / "c" / CHECKPOINT_NAME
    record = json.loads(file.read_text())
    record["preprocess"] |= {"mean": [63.75], "std": [127.5]}
    file.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"0\.25 and 0\.5"):
        read_checkpoint(tmp_path / "c")
