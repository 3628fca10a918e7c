"""The objects of a TorchScript archive and the text of its code, read without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vggdeploy.errors import ForeignModelError
from vggdeploy.model.formats.archive import Archive
from vggdeploy.model.formats.chain import Shape, refused
from vggdeploy.model.formats.pickles import Made, Name, Reader, Stored

_REBUILD, _EMPTY = "torch._utils:_rebuild_tensor_v2", "collections:OrderedDict"
_TAG, _NUMBERS = "torch.jit._pickle:restore_type_tag", "torch.jit._pickle:build_intlist"
_STORAGES = {f"torch:{name}Storage": size for name, size in
             {"Float": 4, "Half": 2, "BFloat16": 2, "Byte": 1, "Double": 8}.items()}  # fmt: skip
_TYPES = {"Float": "fp32", "Half": "fp16", "BFloat16": "bf16"}
_DEBUG, _TABLE = ".debug_pkl", "FORMAT_WITH_STRING_TABLE"
# What stands beside code and numbers, and of which characters.
_DIGITS = frozenset(b"0123456789\n")
_NOTES = ("version", ".format_version", ".storage_alignment", ".data/serialization_id")
_OTHERS = dict.fromkeys(_NOTES, _DIGITS) | {"byteorder": frozenset(b"little")}


class Tensor(NamedTuple):
    """A parameter or buffer: shape, and type as ``fp32``."""

    shape: Shape
    type: str


class Module(NamedTuple):
    """An object of the archive: its class, and its attributes in order."""

    kind: str
    attributes: Mapping[str, Any]


def read_archive(data: memoryview, file: str) -> tuple[Module, dict[str, str]]:
    """The archive's outermost object, and its code: class → text.

    Raises:
        ForeignModelError: another entry than a traced module has, a pickle with other names, tensors outside of their data.
    """
    archive = Archive(data, file)
    stored = {name[5:]: size for name, size in archive.sizes.items() if name.startswith("data/")}
    root = _Objects(stored, file).module(_pickle(archive, "data.pkl", {_REBUILD, _EMPTY, *_STORAGES}, file))
    if _pickle(archive, "constants.pkl", (), file) != ():
        raise refused(file, "its code has constants of its own")
    code: dict[str, str] = {}
    for name in archive.sizes:
        if name.startswith("code/") and name.endswith(".py"):
            if "." in name[5:-3]:
                raise refused(file, f"it has the entry {name}")
            code[name[5:-3].replace("/", ".")] = archive.read(name).decode("ascii", "replace")
        elif name.startswith("code/") and name.endswith(_DEBUG):
            if name.removesuffix(_DEBUG) not in archive.sizes:
                raise refused(file, f"it has the entry {name}")
            _check_debug(_pickle(archive, name, {_NUMBERS}, file), file, name)
        elif name == "traced_inputs.pkl":
            _pickle(archive, name, {_REBUILD, _EMPTY, _TAG, *_STORAGES}, file)
        elif name in _OTHERS:
            if not _OTHERS[name].issuperset(content := archive.read(name)) or len(content) > 64:
                raise refused(file, f"its {name} is {content[:64]!r}")
        elif not name.startswith("data/") and name not in ("data.pkl", "constants.pkl", "traced_inputs/0"):
            raise refused(file, f"it has the entry {name}")
    return root, code


def _pickle(archive: Archive, name: str, names: Any, file: str) -> Any:
    return Reader(archive.read(name), names, file, name).value


def _check_debug(value: Any, file: str, entry: str) -> None:
    """Places in source files, for error messages: PyTorch reads them with the places as indices into the texts."""
    match value:
        case (str(table), tuple(texts), tuple(rows)) if table == _TABLE and all(isinstance(t, str) for t in texts):
            if all(_is_row(row, len(texts)) for row in rows):
                return
    raise refused(file, f"{entry} is no table of source lines")


def _is_row(row: Any, texts: int) -> bool:
    match row:
        case (int(), ((Made(args=(list(lines),)), int(name), int()), int(), int()), int()):
            return all(isinstance(line, int) and 0 <= line < texts for line in (*lines, name))
    return False


class _Objects:
    """Descriptions of a pickle, as modules and tensors."""

    def __init__(self, stored: Mapping[str, int], file: str) -> None:
        self._stored, self._file = stored, file
        self._used: dict[str, int] = {}
        self._count = 0

    def module(self, made: Any) -> Module:
        root = self._module(made, 0)
        if self._used.keys() != self._stored.keys():
            raise refused(self._file, "it has numbers that belong to no layer")
        return root

    def _module(self, made: Any, depth: int) -> Module:
        self._count += 1
        if not isinstance(made, Made) or made.args or depth > 4 or self._count > 4096:
            raise refused(self._file, "its objects are no modules of a VGG")
        return Module(made.name, {name: self._value(value, depth) for name, value in made.state.items()})

    def _value(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Made) and value.name == _REBUILD:
            return self._tensor(value.args)
        return self._module(value, depth + 1)

    def _tensor(self, args: tuple[Any, ...]) -> Tensor:
        match args:
            case (Stored(("storage", Name(kind), str(key), "cpu", int(count))), int(start), tuple(shape), tuple(strides),
                  bool(), Made(name=hooks, args=())) if kind in _STORAGES and hooks == _EMPTY:  # fmt: skip
                numbers = (count, start, *shape, *strides)
                if all(type(n) is int and 0 <= n < 2**40 for n in numbers) and 0 < len(shape) == len(strides) <= 4:
                    last = start + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
                    whole = self._stored.get(key) == count * _STORAGES[kind] and self._used.get(key, count) == count
                    if whole and min(shape) > 0 and last < count:
                        self._used[key] = count
                        return Tensor(shape, _TYPES.get(kind.removeprefix("torch:").removesuffix("Storage"), kind))
        raise refused(self._file, "it has a tensor that is not in its data")


def parameters(data: memoryview, file: str) -> dict[str, Tensor]:
    """Every tensor of the archive by its place: ``features.0.weight``.

    Raises:
        ForeignModelError: it is no TorchScript as vggdeploy writes it.
    """

    def named(module: Module, prefix: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, value in module.attributes.items():
            if isinstance(value, Module):
                found |= named(value, f"{prefix}{name}.")
            elif isinstance(value, Tensor):
                found[prefix + name] = value
        return found

    try:
        return named(read_archive(data, file)[0], "")
    except ForeignModelError as error:
        raise ForeignModelError(f"{file} is not TorchScript: {error.cause}", "export it again") from error
