"""Weights in and out of checkpoints: safetensors only, never pickle. (Other people's files: `vggdeploy.model.foreign`.)"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
import torch
from safetensors import SafetensorError

from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, Checkpoint, read_checkpoint
from vggdeploy.errors import BundleError, CheckpointError, first_line
from vggdeploy.model.formats.safetensors import check_safetensors
from vggdeploy.model.vgg import VGG
from vggdeploy.records import to_json
from vggdeploy.spec import ModelSpec
from vggdeploy.system.files import atomic_directory, sha256_of
from vggdeploy.system.sealed import HashedFile, SealedFile

_AGAIN = "train again, or restore the checkpoint from its source"


def save_checkpoint(target: Path, model: VGG, checkpoint: Checkpoint, *, overwrite: bool = False) -> Checkpoint:
    """Write a checkpoint directory in one step; returns the record as written (with the weights' hash).

    Raises:
        UsageError: ``target`` exists and may not be replaced.
    """
    with atomic_directory(target, marker=CHECKPOINT_NAME, overwrite=overwrite) as draft:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        try:
            safetensors.torch.save_file(state, draft / WEIGHTS_NAME)
        except SafetensorError as error:
            raise _os_error(error, target / WEIGHTS_NAME) from error
        written = msgspec.structs.replace(checkpoint, weights_sha256=sha256_of(draft / WEIGHTS_NAME))
        (draft / CHECKPOINT_NAME).write_bytes(to_json(written))
    return written


def _os_error(error: SafetensorError, path: Path) -> OSError:
    """The operating system's error, which safetensors wraps in a string: ``… (os error 28)``."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is None:
        return OSError(f"cannot write {path}: {first_line(error)}")
    code = int(found[1])
    return OSError(code, os.strerror(code), str(path))


def load_model(path: str | os.PathLike[str]) -> VGG:
    """The model of a checkpoint directory, in evaluation mode: its tensors are the bytes that were hashed.

    Raises:
        CheckpointError: no checkpoint, a damaged file, or weights that do not fit the spec.
    """
    root = Path(path)
    checkpoint = read_checkpoint(root, check_weights=False)
    try:
        with HashedFile(root / WEIGHTS_NAME, checkpoint.weights_sha256).open() as file:
            return new_with_weights(checkpoint.spec, file, where=str(root / WEIGHTS_NAME))
    except BundleError as error:
        raise CheckpointError(error.cause, _AGAIN) from error


def new_with_weights(spec: ModelSpec, file: SealedFile, *, where: str = "") -> VGG:
    """The model of a spec in evaluation mode, with the weights of a safetensors file; its tensors are mapped from the copy.

    Raises:
        CheckpointError: as `load_model`.
    """
    where = where or file.name
    try:
        check_safetensors(memoryview(file.map()))
        state: dict[str, Any] = safetensors.torch.load_file(file.path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{where} cannot be read: {first_line(error)}", _AGAIN) from error
    return new_with_state(spec, state, where=where)


def new_with_state(spec: ModelSpec, state: dict[str, Any], *, where: str) -> VGG:
    """A model in evaluation mode that holds the tensors of ``state`` themselves, not copies; see `load_state`."""
    with torch.device("meta"):
        model = VGG(spec)
    load_state(model, state, where=where)
    return model.eval()


def load_state(model: VGG, state: dict[str, Any], *, where: str) -> None:
    """Put a state dict with torchvision's keys into ``model``; every key, shape and kind of number has to match.

    Batch norms may lack ``num_batches_tracked``, as torchvision's own files of 2017 do: nothing is computed from it.

    Raises:
        CheckpointError: missing or unexpected keys, other shapes, integers for weights: the first few are named.
    """
    expected = model.state_dict()
    state = {k: torch.tensor(0) for k in expected if k.endswith(".num_batches_tracked")} | state
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    shapes = [
        f"{k} is {list(state[k].shape)}, not {list(expected[k].shape)}"
        for k in expected.keys() & state.keys()
        if state[k].shape != expected[k].shape
    ]
    kinds = [
        f"{k} is {str(state[k].dtype).removeprefix('torch.')}"
        for k in expected.keys() & state.keys()
        if state[k].is_floating_point() != expected[k].is_floating_point()
    ]
    wrong = [f"missing {k}" for k in missing] + [f"unexpected {k}" for k in extra] + sorted(shapes + kinds)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{where} does not fit {model.spec.title}: {', '.join(wrong[:3])}{more}", "use the spec it was trained with"
        )
    model.load_state_dict(state, assign=True)
    model.float()
