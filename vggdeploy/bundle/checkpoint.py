"""The checkpoint directory: ``model.safetensors`` (FP32) beside ``checkpoint.json``. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from vggdeploy.errors import BundleError, CheckpointError
from vggdeploy.files import sha256_of
from vggdeploy.records import Record, from_json
from vggdeploy.spec import ModelSpec, PreprocessSpec

CHECKPOINT_NAME = "checkpoint.json"
WEIGHTS_NAME = "model.safetensors"
SCHEMA_VERSION = 1


class Checkpoint(Record, kw_only=True):
    """``checkpoint.json``: everything about the weights that the weights do not say themselves.

    ``dataset`` names what it was trained on, "" when unknown; ``training`` is the record of the run, empty for
    weights that came from elsewhere.
    """

    schema_version: int = SCHEMA_VERSION
    spec: ModelSpec
    preprocess: PreprocessSpec
    labels: tuple[str, ...]
    dataset: str = ""
    training: dict[str, Any] = {}
    weights_sha256: str = ""
    tools: dict[str, str] = {}


class _Versioned(msgspec.Struct):
    schema_version: int


def read_checkpoint(path: str | os.PathLike[str], *, check_weights: bool = True) -> Checkpoint:
    """Read ``checkpoint.json`` and verify the weights' SHA-256.

    Raises:
        CheckpointError: not a checkpoint, damaged, or of a newer schema.
    """
    root = Path(path)
    file = root / CHECKPOINT_NAME
    if not file.is_file():
        found = "is not a checkpoint (no checkpoint.json)" if root.exists() else "does not exist"
        raise CheckpointError(f"{root} {found}", "make one: vggdeploy train --arch vgg11_bn --dataset digits -o DIR")
    try:
        data = file.read_bytes()
        version = from_json(data, _Versioned, what=str(file)).schema_version
        if version > SCHEMA_VERSION:
            raise CheckpointError(
                f"{file} has schema version {version}; this vggdeploy reads up to {SCHEMA_VERSION}",
                "update vggdeploy: pip install -U vggdeploy",
            )
        checkpoint = from_json(data, Checkpoint, what=str(file))
    except BundleError as error:
        raise CheckpointError(error.cause, "train again, or restore the checkpoint from its source") from error
    weights = root / WEIGHTS_NAME
    if not weights.is_file():
        raise CheckpointError(f"{root} misses {WEIGHTS_NAME}", "train again, or restore the checkpoint from its source")
    if check_weights and sha256_of(weights) != checkpoint.weights_sha256:
        raise CheckpointError(
            f"{weights} was altered: its SHA-256 is not the one in {CHECKPOINT_NAME}",
            "train again, or restore the checkpoint from its source",
        )
    return checkpoint
