"""Read a state dict from a file that somebody else wrote. Nothing in it is ever run.

A ``.safetensors`` is data by design. A ``.pth`` is a pickle: it is read with ``weights_only=True``, by an interpreter
that can build tensors and plain containers, and refuses to call anything else. The kind of file is told from its bytes.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vggdeploy.errors import CheckpointError, first_line
from vggdeploy.model.foreign.facts import shortened
from vggdeploy.model.formats.safetensors import check_safetensors
from vggdeploy.system.files import open_regular, sha256_of
from vggdeploy.system.sealed import mapped

# Names under which training programs keep the network in a larger dictionary, the likeliest first.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
_MAX_PICKLE = 64 * 2**20  # the pickle of a state dict names tensors, it does not hold them: a VGG's has a few kB

_SAVE_AGAIN = "save only the weights: torch.save(model.state_dict(), FILE)"
_FETCH_AGAIN = "fetch it again from its source"
_LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # torch.serialization.MAGIC_NUMBER as every pickle protocol writes it
# What else is handed over as weights: how it begins, what it is, what to do.
_OTHERS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "fetch the file: git lfs pull"),
    (b"<", "is a web page, not weights", "download the file itself: the link leads to a page about it"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes it", "convert it to a PyTorch state dict first"),
    (b"\x80", "is a bare pickle, which could run anything", _SAVE_AGAIN),
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
        raise CheckpointError(f"{where} is empty (0 bytes)", _FETCH_AGAIN)
    if head.startswith(b"PK"):
        _check_zip(path, size, where)
        loaded = _torch_load(path, where, mmap=True)
    elif _LEGACY in head[:32]:
        loaded = _torch_load(path, where, mmap=False)  # torch before 1.6, torchvision's files too: cannot be mapped
    elif head[8:9] == b"{":
        loaded = _safetensors_load(path, where)
    else:
        for magic, cause, hint in _OTHERS:
            if head.lstrip().startswith(magic):
                raise CheckpointError(f"{where} {cause}", hint)
        raise CheckpointError(f"{where} is not a file of weights", "give a .pth, .pt or .safetensors file")
    chosen, tensors, unused = unwrap(loaded, where)
    _check_tensors(tensors, size, where)
    notes = (f"read from '{chosen}' in the file",) if chosen else ()
    return StateFile(where, tensors, sha256_of(path), unused, notes)


def _check_zip(path: Path, size: int, where: str) -> None:
    """Refuse what torch.save never writes: compressed entries (a few kB could become gigabytes), a huge pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # a damaged or hostile archive can drive the parser into any error
        raise CheckpointError(f"{where} is damaged: {first_line(error)}", _FETCH_AGAIN) from error
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{where} is a TorchScript program, not a state dict",
            "save its weights: torch.save(torch.jit.load(FILE).state_dict(), NEW)",
        )
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if not pickles:
        raise CheckpointError(f"{where} is a zip archive that torch.save did not write", "give the .pth file inside it")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise CheckpointError(f"{where} is compressed, which torch.save never does", _SAVE_AGAIN)
    if max(entry.file_size for entry in pickles) > _MAX_PICKLE:
        raise CheckpointError(f"{where} holds a pickle of more than {_MAX_PICKLE:,} bytes", _SAVE_AGAIN)


def _torch_load(path: Path, where: str, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about sparse and quantised tensors, which are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise CheckpointError(
                f"{where} holds more than weights: it asks to run {wanted[1]}, and was refused", _SAVE_AGAIN
            ) from error
        told = re.search(r"WeightsUnpickler error: ([^\n]+)", str(error))
        raise CheckpointError(
            f"{where} holds more than weights, or is damaged: {told[1] if told else first_line(error)}", _SAVE_AGAIN
        ) from error
    except MemoryError as error:
        raise CheckpointError(f"{where} does not fit into the memory", "use a larger machine") from error
    except Exception as error:  # a damaged or hostile file can drive the reader into any error
        raise CheckpointError(f"{where} is damaged: {first_line(error)}", _FETCH_AGAIN) from error


def _safetensors_load(path: Path, where: str) -> Any:
    try:
        check_safetensors(mapped(path))
        return safetensors.torch.load_file(path)
    except Exception as error:  # as above
        raise CheckpointError(f"{where} is damaged: {first_line(error)}", _FETCH_AGAIN) from error


def unwrap(loaded: Any, where: str) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Find the state dict in what a file holds.

    Returns:
        The path of keys that leads to it ("" for the file's own dictionary), its tensors, and what else was there.

    Raises:
        CheckpointError: there is none.
    """
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{where} holds a {type(loaded).__name__}, not a state dict", _SAVE_AGAIN)
    found = dict(_state_dicts(loaded, ""))
    if not found:
        keys = shortened([str(key) for key in loaded]) or "nothing"
        raise CheckpointError(f"{where} holds no state dict: {keys}", _SAVE_AGAIN)
    last = {path: path.rpartition(".")[2] for path in found}
    rank = {path: WRAPPERS.index(name) if name in WRAPPERS else len(WRAPPERS) for path, name in last.items()}
    chosen = "" if "" in found else min(found, key=rank.__getitem__)
    state = found[chosen]
    tensors = {str(key): value.detach() for key, value in state.items() if isinstance(value, Tensor)}
    unused = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if chosen:
        top = chosen.partition(".")[0]
        unused += [str(key) for key in loaded if key != top] + [path for path in found if path.startswith(f"{top}.")]
    return chosen, tensors, tuple(name for name in unused if name != chosen)


def _state_dicts(mapping: Mapping[Any, Any], path: str, depth: int = 0) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every dictionary, down to the second level, that holds a tensor named like a layer's weight."""
    if any(isinstance(v, Tensor) and isinstance(k, str) and k.endswith(".weight") for k, v in mapping.items()):
        yield path, mapping
    elif depth < 2:
        for key, value in mapping.items():
            if isinstance(value, Mapping) and isinstance(key, str):
                yield from _state_dicts(value, f"{path}.{key}" if path else key, depth + 1)


def _check_tensors(tensors: Mapping[str, Tensor], size: int, where: str) -> None:
    """Refuse what is not plain numbers that lie in the file: a tensor can claim terabytes with a stride of 0."""
    total = 0
    for name, tensor in tensors.items():
        plain = type(tensor) is Tensor and tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or tensor.is_complex():
            raise CheckpointError(f"{where}: {name} is not a plain tensor", _SAVE_AGAIN)
        total += tensor.numel() * tensor.element_size()
    if total > size:
        raise CheckpointError(f"{where} claims {total:,} bytes of weights and has {size:,}", _FETCH_AGAIN)
