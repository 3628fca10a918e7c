"""Read a state dict from a file that somebody else wrote. Nothing in it is ever run.

A ``.safetensors`` is data by design. A ``.pth`` is a pickle beside raw numbers: the pickle is read by our own reader, which
only describes what it finds, and the numbers are mapped. The kind of file is told from its bytes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from vggdeploy.errors import CheckpointError, first_line
from vggdeploy.model.foreign.archive import FETCH_AGAIN, LEGACY, SAVE_AGAIN, Numbers, read_archive, read_legacy
from vggdeploy.model.foreign.facts import shortened
from vggdeploy.model.foreign.pickled import Described
from vggdeploy.model.formats.safetensors import check_safetensors
from vggdeploy.system.files import open_regular, sha256_of
from vggdeploy.system.sealed import mapped

# Names under which training programs keep the network in a larger dictionary, the likeliest first.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
_TENSORS = (Tensor, Described)
_MAX_ENTRIES = 100_000
# What else is handed over as weights: how it begins, what it is, what to do.
_FROM_KERAS = (
    "copy its weights into the same network in PyTorch, and give what torch.save(model.state_dict(), FILE) writes"
)
_OTHERS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "fetch the file: git lfs pull"),
    (b"<", "is a web page, not weights", "download the file itself: the link leads to a page about it"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes it", _FROM_KERAS),
    (b"\x80", "is a bare pickle, which could run anything", SAVE_AGAIN),
)  # fmt: skip


@dataclass(frozen=True)
class StateFile:
    """A state dict and where it lay. ``unused`` names what stood beside it, ``notes`` what was decided."""

    where: str
    tensors: dict[str, Tensor]
    sha256: str = ""
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_state_file(path: str | os.PathLike[str], *, where: str = "") -> StateFile:
    """The state dict in a ``.pth``, ``.pt`` or ``.safetensors``; tensors are mapped from the file where it allows it.

    Args:
        path: the file. Its bytes tell what it is, not its name.
        where: how errors name it; default its path.

    Raises:
        CheckpointError: it is missing, damaged, holds no state dict, or more than data.
    """
    path, where = Path(path), where or os.fspath(path)
    try:
        with open_regular(path) as file:
            head, size = file.read(64), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CheckpointError(
            f"{where} cannot be read: {error.strerror}", "give the path of a file of weights"
        ) from error
    if not size:
        raise CheckpointError(f"{where} is empty (0 bytes)", FETCH_AGAIN)
    if head.startswith(b"PK") and path.suffix.lower() == ".keras":  # a zip archive too
        raise CheckpointError(f"{where} is a Keras file", _FROM_KERAS)
    if head.startswith(b"PK"):
        loaded, numbers = read_archive(path, where)
    elif LEGACY in head[:32]:
        loaded, numbers = read_legacy(path, where)  # torch before 1.6, torchvision's files too
    elif head[8:9] == b"{":
        loaded, numbers = _safetensors_load(path, where), Numbers()
    else:
        for magic, cause, hint in _OTHERS:
            if head.lstrip().startswith(magic):
                raise CheckpointError(f"{where} {cause}", hint)
        raise CheckpointError(f"{where} is not a file of weights", "give a .pth, .pt or .safetensors file")
    chosen, described, unused = unwrap(loaded, where)
    _check_size(described, size, where)
    tensors = {name: numbers.tensor(t) if isinstance(t, Described) else t for name, t in described.items()}
    _check_plain(tensors, where)
    notes = (f"read from '{chosen}' in the file",) if chosen else ()
    return StateFile(where, tensors, sha256_of(path), unused, notes)


def _safetensors_load(path: Path, where: str) -> Any:
    try:
        check_safetensors(mapped(path))
        return safetensors.torch.load_file(path)
    except Exception as error:  # as above
        raise CheckpointError(f"{where} is damaged: {first_line(error)}", FETCH_AGAIN) from error


def unwrap(loaded: Any, where: str) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Find the state dict in what a file holds.

    Returns:
        The path of keys that leads to it ("" for the file's own dictionary), its tensors, and what else was there.

    Raises:
        CheckpointError: there is none.
    """
    if not isinstance(loaded, Mapping):
        kind = "Tensor" if isinstance(loaded, Described) else type(loaded).__name__
        raise CheckpointError(f"{where} holds a {kind}, not a state dict", SAVE_AGAIN)
    found = dict(_state_dicts(loaded, where))
    if not found:
        keys = shortened([str(key) for key in loaded]) or "nothing"
        raise CheckpointError(f"{where} holds no state dict: {keys}", SAVE_AGAIN)
    last = {path: path.rpartition(".")[2] for path in found}
    rank = {path: WRAPPERS.index(name) if name in WRAPPERS else len(WRAPPERS) for path, name in last.items()}
    chosen = "" if "" in found else min(found, key=rank.__getitem__)
    state = found[chosen]
    tensors = {str(key): value for key, value in state.items() if isinstance(value, _TENSORS)}
    unused = [str(key) for key, value in state.items() if not isinstance(value, _TENSORS)]
    if chosen:
        top = chosen.partition(".")[0]
        unused += [str(key) for key in loaded if key != top] + [path for path in found if path.startswith(f"{top}.")]
    return chosen, tensors, tuple(name for name in unused if name != chosen)


def _state_dicts(mapping: Mapping[Any, Any], where: str) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every dictionary, down to the second level, that holds a tensor named like a layer's weight."""
    entries, waiting = 0, deque([("", mapping, 0)])
    while waiting:
        path, found, depth = waiting.popleft()
        entries += len(found)
        if entries > _MAX_ENTRIES:  # the same dictionary can stand under any number of names
            raise CheckpointError(f"{where} holds more than {_MAX_ENTRIES:,} entries", SAVE_AGAIN)
        if any(isinstance(v, _TENSORS) and isinstance(k, str) and k.endswith(".weight") for k, v in found.items()):
            yield path, found
        elif depth < 2:
            for key, value in found.items():
                if isinstance(value, Mapping) and isinstance(key, str):
                    waiting.append((f"{path}.{key}" if path else key, value, depth + 1))


def _check_size(tensors: Mapping[str, Any], size: int, where: str) -> None:
    """Refuse what cannot lie in the file: a tensor can claim terabytes with a stride of 0."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > size:
        raise CheckpointError(f"{where} claims {total:,} bytes of weights and has {size:,}", FETCH_AGAIN)


def _check_plain(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise CheckpointError(f"{where}: {name} is not a plain tensor", SAVE_AGAIN)
