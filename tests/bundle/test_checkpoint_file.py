"""A checkpoint is read whole or refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, Checkpoint, read_checkpoint
from vggdeploy.errors import CheckpointError
from vggdeploy.records import to_json
from vggdeploy.spec import ModelSpec, PreprocessSpec

WEIGHTS = bytes(range(256))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkpoint directory. Its weights are no model's: only their hash is looked at here."""
    checkpoint = Checkpoint(
        spec=ModelSpec.named("vgg11", width=0.25, in_channels=1, classes=2, image_size=32, hidden=8),
        preprocess=PreprocessSpec(mode="L", resize=32, crop=32, mean=(0.5,), std=(0.5,)),
        labels=("no", "yes"),
        training={"epochs": 3, "loss": [1.5, 0.5]},
        weights_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    )
    root = tmp_path / "checkpoint"
    root.mkdir()
    (root / CHECKPOINT_NAME).write_bytes(to_json(checkpoint))
    (root / WEIGHTS_NAME).write_bytes(WEIGHTS)
    return root


def refused(root: Path, *, check_weights: bool = True) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(root, check_weights=check_weights)
    assert type(caught.value) is CheckpointError
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value.cause


def edit(root: Path, **fields: Any) -> None:
    file = root / CHECKPOINT_NAME
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **fields}))


def test_it_comes_back_as_it_was_written(root: Path) -> None:
    checkpoint = read_checkpoint(root)
    assert checkpoint.labels == ("no", "yes")
    assert checkpoint.training == {"epochs": 3, "loss": [1.5, 0.5]}


def test_nothing_there(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none")


def test_an_empty_directory(tmp_path: Path) -> None:
    assert "is not a checkpoint (no checkpoint.json)" in refused(tmp_path)


def test_a_file_instead_of_a_directory(root: Path) -> None:
    assert "is not a checkpoint" in refused(root / WEIGHTS_NAME)


def test_missing_weights(root: Path) -> None:
    (root / WEIGHTS_NAME).unlink()
    assert "misses model.safetensors" in refused(root)
    assert "misses model.safetensors" in refused(root, check_weights=False)


@pytest.mark.parametrize("at", [0, 100, 255])
def test_altered_weights(root: Path, at: int) -> None:
    (root / WEIGHTS_NAME).write_bytes(WEIGHTS[:at] + bytes([WEIGHTS[at] ^ 1]) + WEIGHTS[at + 1 :])
    assert "was altered" in refused(root)
    read_checkpoint(root, check_weights=False)


def test_a_cut_description(root: Path) -> None:
    file = root / CHECKPOINT_NAME
    data = file.read_bytes()
    for end in range(0, len(data) - 3, 50):
        file.write_bytes(data[:end])
        assert "checkpoint.json cannot be read" in refused(root)


@pytest.mark.parametrize("version", [0, -1, 2, 99])
def test_another_schema_version(root: Path, version: int) -> None:
    edit(root, schema_version=version, news=True)
    assert f"has schema version {version}" in refused(root)


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"extra": 1}, "unknown field `extra`"),
        ({"labels": ["one"]}, "has 1 label for 2 classes"),
        ({"spec": None}, "Expected `object`, got `null`"),
        ({"training": []}, "Expected `object`, got `array`"),
        ({"weights_sha256": "0" * 64}, "was altered"),
    ],
    ids=["unknown", "labels", "spec", "training", "hash"],
)
def test_nonsense_is_named(root: Path, fields: dict[str, Any], cause: str) -> None:
    edit(root, **fields)
    assert cause in refused(root)


def test_a_width_beyond_numbers(root: Path) -> None:
    spec = json.loads((root / CHECKPOINT_NAME).read_bytes())["spec"]
    edit(root, spec={**spec, "width": 1e308})
    assert "cannot be read" in refused(root)


@pytest.mark.parametrize("name", [CHECKPOINT_NAME, WEIGHTS_NAME])
def test_a_pipe_does_not_hang(root: Path, name: str) -> None:
    (root / name).unlink()
    os.mkfifo(root / name)
    refused(root)
