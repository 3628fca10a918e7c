"""The checkpoint directory: ``model.safetensors`` (FP32) beside ``checkpoint.json``. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from vggdeploy.errors import BundleError, CheckpointError, counted, nearby
from vggdeploy.records import OriginalNetwork, Record, StepRecord, from_json
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.files import read_regular, sha256_of

CHECKPOINT_NAME = "checkpoint.json"
WEIGHTS_NAME = "model.safetensors"
SCHEMA_VERSION = 1
_MAX_BYTES = 64 * 2**20
_AGAIN = "train again, or restore the checkpoint from its source"


class Checkpoint(Record, frozen=True, kw_only=True):
    """``checkpoint.json``: everything about the weights that the weights do not say themselves.

    ``dataset`` names what it was trained on, "" when unknown; ``training`` is the record of the run. For weights that
    came from elsewhere it holds, as ``weights``, where from and what was used, left and assumed. Where steps changed the
    structure of what was trained, ``origin`` is the network as it was trained, and ``steps`` are what was done to it.
    """

    schema_version: int = SCHEMA_VERSION
    spec: ModelSpec
    preprocess: PreprocessSpec
    labels: tuple[str, ...]
    dataset: str = ""
    training: dict[str, Any] = {}
    origin: OriginalNetwork | None = None
    steps: tuple[StepRecord, ...] = ()
    weights_sha256: str = ""
    tools: dict[str, str] = {}


class _Versioned(msgspec.Struct):
    schema_version: int


def read_checkpoint(path: str | os.PathLike[str], *, check_weights: bool = True) -> Checkpoint:
    """Read ``checkpoint.json`` and verify the weights' SHA-256.

    Raises:
        CheckpointError: not a checkpoint, damaged, or of another schema version.
    """
    root = Path(path)
    file, weights = root / CHECKPOINT_NAME, root / WEIGHTS_NAME
    try:
        checkpoint = parse_checkpoint(read_regular(file, limit=_MAX_BYTES), str(file))
        if not weights.is_file():
            raise CheckpointError(f"{root} misses {WEIGHTS_NAME}", _AGAIN)
        altered = check_weights and sha256_of(weights) != checkpoint.weights_sha256
    except (FileNotFoundError, NotADirectoryError):
        state = f"is not a checkpoint (no {CHECKPOINT_NAME})" if root.exists() else "does not exist"
        if (root / "manifest.json").is_file():
            raise CheckpointError(
                f"{root} is a bundle, not a checkpoint", f"its checkpoint lies inside: {root / 'checkpoint'}"
            ) from None
        hint = f"{nearby(root)}make one: vggdeploy train --arch vgg11_bn --dataset digits -o DIR"
        raise CheckpointError(f"{root} {state}", hint) from None
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}", "check its permissions") from error
    if altered:
        raise CheckpointError(f"{weights} was altered: its SHA-256 is not the one in {CHECKPOINT_NAME}", _AGAIN)
    return checkpoint


def parse_checkpoint(data: bytes, what: str) -> Checkpoint:
    """The record in the bytes of a ``checkpoint.json``; ``what`` names them in errors. Raises as `read_checkpoint`."""
    try:
        version = from_json(data, _Versioned, what=what).schema_version
        if version != SCHEMA_VERSION:
            newer = (
                "install a newer vggdeploy, from its repository or a wheel"
                if version > SCHEMA_VERSION
                else "train again"
            )
            raise CheckpointError(
                f"{what} has schema version {version}; this vggdeploy reads version {SCHEMA_VERSION}", newer
            )
        checkpoint = from_json(data, Checkpoint, what=what)
    except BundleError as error:
        raise CheckpointError(error.cause, _AGAIN) from error
    except ArithmeticError as error:  # numbers so large that the spec cannot compute with them
        raise CheckpointError(f"{what} cannot be read: {error}", _AGAIN) from error
    classes = checkpoint.spec.classes
    if len(checkpoint.labels) not in (0, classes):
        raise CheckpointError(f"{what} has {counted(len(checkpoint.labels), 'label')} for {classes} classes", _AGAIN)
    return checkpoint
