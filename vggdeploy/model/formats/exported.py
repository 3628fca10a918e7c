"""A program of `torch.export` (``.pt2``), checked before PyTorch sees it. Nothing of it is run.

`torch.export.load` trusts its archive: tensors and sample inputs may be pickles, sizes are evaluated as expressions, an
operator may be any attribute of `torch`, and native code in it is loaded. What is admitted is what exporting a VGG gives:
plain numbers, and a graph that is the network's chain of layers. (What PyTorch 2.14 trusts stands in its files
torch/export/pt2_archive/_package.py and torch/_export/serde/serialize.py.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

from vggdeploy.errors import ForeignModelError
from vggdeploy.model.formats.archive import Archive
from vggdeploy.model.formats.chain import Chain, Shape, refused
from vggdeploy.model.formats.exported_graph import Program, ordinary
from vggdeploy.model.formats.objects import Tensor

_MODEL = "models/model.json"
# The numbers that PyTorch's schema gives types: torch/_export/serde/schema.py, ScalarType.
_TYPES = {6: ("fp16", 2), 7: ("fp32", 4), 13: ("bf16", 2)}
_PARAMETER = re.compile(r"(features|classifier)(\.[0-9]{1,4}){1,2}\.(weight|bias)")
_BUFFER = re.compile(r"scale|shift")
_DIGITS = re.compile(rb"[0-9]{1,64}\n?")
_NOTES = {
    "archive_format": re.compile(rb"pt2"),
    "archive_version": re.compile(rb"0"),
    "byteorder": re.compile(rb"little"),
    ".data/version": _DIGITS,
    ".data/serialization_id": _DIGITS,
    "data/sample_inputs/model.pt": re.compile(rb""),  # else it is a pickle
}


class _Place(NamedTuple):
    """Where an archive has a kind of tensors: its directory, the names of their files, and their own."""

    directory: str
    prefix: str
    config: str
    names: re.Pattern[str]


_WEIGHTS = _Place("data/weights", "weight_", "model_weights_config.json", _PARAMETER)
_CONSTANTS = _Place("data/constants", "tensor_", "model_constants_config.json", _BUFFER)


def check_exported(data: memoryview, chain: Chain, file: str) -> None:
    """
    Raises:
        ForeignModelError: the archive is no exported VGG, or not that of the chain.
    """
    tensors, document = _read(data, file)
    Program(document, tensors, chain, file).check()


def exported_parameters(data: memoryview, file: str) -> dict[str, Tensor]:
    """Every weight of the archive by its place: ``features.0.weight``.

    Raises:
        ForeignModelError: it is no program as vggdeploy writes it.
    """
    try:
        return _read(data, file)[0]
    except ForeignModelError as error:
        raise ForeignModelError(f"{file} is no exported program: {error.cause}", "export it again") from error


def _read(data: memoryview, file: str) -> tuple[dict[str, Tensor], Any]:
    """Every tensor by its name, and the document of the graph."""
    archive = Archive(data, file)
    tensors: dict[str, Tensor] = {}
    known = {_MODEL, *_NOTES}
    for place in (_WEIGHTS, _CONSTANTS):
        found, files = _tensors(archive, place, file)
        tensors |= found
        known |= files
    for name in archive.sizes:
        if name not in known:
            raise refused(file, f"it has the entry {name}")
    for name, pattern in _NOTES.items():
        if archive.sizes.get(name, 0) > 64 or not pattern.fullmatch(archive.read(name)):
            raise refused(file, f"its {name} is not what PyTorch writes")
    return tensors, _document(archive, _MODEL, file)


def _document(archive: Archive, name: str, file: str) -> Any:
    """JSON in which no name stands twice: readers would differ in which one they take."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    def no_constant(text: str) -> Any:
        raise ValueError(f"{text} is no JSON")

    try:
        return json.loads(archive.read(name).decode("ascii"), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError):
        raise refused(file, f"its {name} is not what PyTorch writes") from None


def _tensors(archive: Archive, place: _Place, file: str) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors of one kind, and the archive's entries that belong to them."""
    config = f"{place.directory}/{place.config}"
    document = _document(archive, config, file)
    listed = document.get("config") if isinstance(document, dict) and len(document) == 1 else None
    if not isinstance(listed, dict):
        raise refused(file, f"its {config} is not what PyTorch writes")
    found: dict[str, Tensor] = {}
    files = {config}
    for name, about in listed.items():
        match about:
            case {"path_name": str(path), "is_param": bool(), "use_pickle": False, "tensor_meta": dict(meta)} if (
                len(about) == 4 and place.names.fullmatch(name) and re.fullmatch(rf"{place.prefix}[0-9]{{1,5}}", path)
            ):
                entry = f"{place.directory}/{path}"
                if entry in files:
                    raise refused(file, f"two tensors lie in {entry}")
                files.add(entry)
                found[name] = _tensor(meta, archive.sizes.get(entry), name, file)
            case _:
                raise refused(file, f"its tensor {name[:100]} is not plain numbers")
    return found, files


def _tensor(meta: Mapping[str, Any], size: int | None, name: str, file: str) -> Tensor:
    """A tensor that lies within its file, which holds nothing else."""
    match meta:
        case {"dtype": int(kind), "sizes": list(sizes), "strides": list(strides)} if kind in _TYPES and ordinary(meta):
            shape, steps = _integers(sizes), _integers(strides)
            if shape and len(shape) == len(steps) <= 4 and min(shape) > 0:
                last = sum((count - 1) * step for count, step in zip(shape, steps, strict=True))
                if size == prod(shape) * _TYPES[kind][1] and last < prod(shape):
                    return Tensor(shape, _TYPES[kind][0])
    raise refused(file, f"its tensor {name[:100]} is not in its data")


def _integers(values: list[Any]) -> Shape:
    """Of ``[{"as_int": 3}, …]``; empty where one is anything else."""
    found = [value["as_int"] for value in values if isinstance(value, dict) and value.keys() == {"as_int"}]
    return tuple(found) if len(found) == len(values) and all(type(n) is int and 0 <= n < 2**40 for n in found) else ()
