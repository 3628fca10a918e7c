"""The two containers of ``torch.save``: a zip archive since 1.6, before it pickles with raw numbers behind them."""

from __future__ import annotations

import io
import mmap
import struct
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from vggdeploy.errors import CheckpointError, first_line
from vggdeploy.model.foreign.pickled import ELEMENTS, Described, ForeignPickleError, Storage, read_pickle
from vggdeploy.system.files import open_regular

SAVE_AGAIN = "save only the weights: torch.save(model.state_dict(), FILE)"
FETCH_AGAIN = "fetch it again from its source"
LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # torch.serialization.MAGIC_NUMBER as every pickle protocol writes it
_MAX_PICKLE = 64 * 2**20  # the pickle of a state dict names tensors, it does not hold them: a VGG's has a few kB
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip entry: signature, lengths of its name and of what follows
_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip


@dataclass
class Numbers:
    """Where the numbers of each storage begin in a file, which is mapped, and how many bytes there are."""

    data: bytes | mmap.mmap = b""
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    where: str = ""

    def tensor(self, described: Described) -> Tensor:
        """The tensor that was described: a view of the file where its numbers are aligned.

        Raises:
            CheckpointError: the file does not hold them.
        """
        storage = described.storage
        start, length = self.places.get(storage.key, (0, -1))
        if storage.nbytes > length:
            raise CheckpointError(f"{self.where} is damaged: the numbers of a tensor are missing", FETCH_AGAIN)
        dtype = _DTYPES[storage.kind]
        if not storage.numel:
            return torch.empty(described.size, dtype=dtype)
        if start % ELEMENTS[storage.kind]:
            flat = torch.frombuffer(bytearray(self.data[start : start + storage.nbytes]), dtype=dtype)
        else:
            flat = torch.frombuffer(self.data, dtype=dtype, count=storage.numel, offset=start)
        return flat.as_strided(described.size, described.stride, described.offset)


def read_archive(path: Path, where: str) -> tuple[Any, Numbers]:
    """What a zip archive of ``torch.save`` describes, and its numbers.

    Raises:
        CheckpointError: it is damaged, or something else. Refused is what torch.save never writes: compressed entries (a
            few kB could become gigabytes), a huge pickle.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            pickled = _pickle_of(archive, entries, path.stat().st_size, where)
            root = pickled.filename.removesuffix("data.pkl")
            if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
                raise CheckpointError(f"{where} was written on a big-endian machine", SAVE_AGAIN)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # writes stay ours
            prefix = f"{root}data/"
            places = {
                entry.filename.removeprefix(prefix): (_start(data, entry), entry.file_size)
                for entry in entries
                if entry.filename.startswith(prefix)
            }
            return read_pickle(io.BytesIO(archive.read(pickled))), Numbers(data, places, where)
    except Exception as error:  # a damaged or hostile archive can drive the parser into any error
        raise _refusal(where, error) from error


def _pickle_of(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], size: int, where: str) -> zipfile.ZipInfo:
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(
            f"{where} is a TorchScript program, not a state dict",
            "save its weights: torch.save(torch.jit.load(FILE).state_dict(), NEW)",
        )
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{where} is a zip archive that torch.save did not write", "give the .pth file inside it")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise CheckpointError(f"{where} is compressed, which torch.save never does", SAVE_AGAIN)
    if pickles[0].file_size > _MAX_PICKLE:
        raise CheckpointError(f"{where} holds a pickle of more than {_MAX_PICKLE:,} bytes", SAVE_AGAIN)
    return pickles[0]


def _start(data: mmap.mmap, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: behind its own header, whose lengths can differ from the directory's."""
    signature, name, extra = _LOCAL_HEADER.unpack_from(data, entry.header_offset)
    start: int = entry.header_offset + _LOCAL_HEADER.size + name + extra
    if signature != b"PK\x03\x04" or start + entry.file_size > len(data):
        raise ValueError(f"the entry {entry.filename} does not lie where the directory says")
    return start


def read_legacy(path: Path, where: str) -> tuple[Any, Numbers]:
    """What a file of torch before 1.6 describes, and its numbers.

    Raises:
        CheckpointError: it is damaged, or holds more than data.
    """
    try:
        with open_regular(path) as file:
            read_pickle(file)  # the magic number
            read_pickle(file)  # the version
            system = read_pickle(file)
            if system["little_endian"] is not True or sys.byteorder != "little":
                raise CheckpointError(f"{where} was written on a big-endian machine", SAVE_AGAIN)
            described = read_pickle(file)
            keys, kinds = read_pickle(file), _storages(described)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return described, Numbers(data, _places(file, keys, kinds), where)
    except Exception as error:  # as above
        raise _refusal(where, error) from error


def _storages(described: Any) -> dict[str, Storage]:
    """Every storage that is mentioned, by its key."""
    found, seen, open_ = dict[str, Storage](), set[int](), [described]
    while open_:
        value = open_.pop()
        if isinstance(value, Described):
            found[value.storage.key] = value.storage
        elif isinstance(value, Storage):
            found[value.key] = value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            open_ += value.values() if isinstance(value, dict) else value
    return found


def _places(file: IO[bytes], keys: list[str], kinds: dict[str, Storage]) -> dict[str, tuple[int, int]]:
    """Behind the pickles stand the storages, each with its count in front."""
    places, at = {}, file.tell()
    for key in keys:
        file.seek(at)
        (count,) = struct.unpack("<q", file.read(8))
        if count != kinds[key].numel:
            raise ValueError("a storage has another size than its tensors say")
        places[key] = (at + 8, kinds[key].nbytes)
        at += 8 + kinds[key].nbytes
    if at > file.seek(0, io.SEEK_END):
        raise ValueError("the file ends within its numbers")
    return places


def _refusal(where: str, error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    if isinstance(error, ForeignPickleError):
        return CheckpointError(f"{where} {error}", SAVE_AGAIN)
    return CheckpointError(f"{where} is damaged: {first_line(error)}", FETCH_AGAIN)
