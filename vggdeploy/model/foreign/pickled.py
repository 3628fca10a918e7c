"""What a pickle of tensors describes, read instruction by instruction. Nothing is imported, called or run.

``pickletools`` of the standard library takes the stream apart; this file knows the instructions that ``torch.save`` writes
for dictionaries, lists, numbers, text and tensors, and the few names that those need. Everything else is refused where it
stands. Work and memory are bounded by the number of instructions, whatever they say.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

MAX_STEPS = 400_000  # a training state of VGG-19 with batch norm has about 20,000
_DIMENSIONS, _NAME = 16, 300
_TENSOR = "torch._utils._rebuild_"
# Bytes of an element, by the class of a storage in `torch`.
ELEMENTS = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}  # fmt: skip
# Instructions by what they do to the stack; see `pickletools.opcodes`.
_VALUES = {"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "LONG1"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NEW = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()
Plain = (str, int, float, type(None))  # what may be a key: anything deeper could take for ever to hash


class ForeignPickleError(Exception):
    """It is refused; the text says why, after the file's name."""


@dataclass(frozen=True, eq=False)
class Name:
    """A name of Python's, which nobody looks up."""

    path: str


@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers that lie elsewhere in the file, under ``key``; ``kind`` is a name of `ELEMENTS`."""

    key: str
    kind: str
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * ELEMENTS[self.kind]


@dataclass(frozen=True, eq=False)
class Described:
    """A tensor: a view of a storage, which lies within it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * ELEMENTS[self.storage.kind]


def read_pickle(file: IO[bytes]) -> Any:
    """What the next pickle of ``file`` describes: containers, plain values, `Described`, `Storage` and `Name`.

    Raises:
        ForeignPickleError: it holds anything else, or more than `MAX_STEPS` instructions. ValueError, IndexError, KeyError
            and TypeError: it is damaged.
    """
    return _Reader().read(file)


class _Reader:
    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, file: IO[bytes]) -> Any:
        for steps, (code, value, _) in enumerate(pickletools.genops(file)):
            if steps >= MAX_STEPS:
                raise ForeignPickleError(f"has more than {MAX_STEPS:,} instructions, which no state dict needs")
            if code.name == "STOP":
                return self._stack.pop()
            self._step(code.name, value)
        raise ValueError("the pickle has no end")

    def _step(self, name: str, value: Any) -> None:
        stack = self._stack
        if name in _VALUES:
            stack.append(value)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[value] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[value])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name == "GLOBAL":
            stack.append(Name(value.replace(" ", ".")))
        elif name != "PROTO":
            self._build(name)

    def _build(self, name: str) -> None:
        stack = self._stack
        if name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._since_mark()
            _the(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._since_mark()
            _the(dict, stack[-1]).update(_pairs(zip(items[::2], items[1::2], strict=True)))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            stack.append(_made(_the(Name, called).path, _the(tuple, arguments)))
        elif name == "BUILD":  # state_dict() hangs the versions of its layers to the dictionary
            if set(_the(dict, stack.pop())) - {"_metadata"}:
                raise ForeignPickleError("holds more than weights: a dictionary with attributes")
            _the(dict, stack[-1])
        elif name == "NEWOBJ":
            raise _runs(_the(Name, stack[-2]).path)
        else:
            raise ForeignPickleError(f"holds more than weights: the instruction {name}")

    def _since_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items


def _the(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {kind.__name__} was expected, and a {type(value).__name__} stands there")
    return value


def _pairs(items: Any) -> dict[Any, Any]:
    found = {}
    for key, value in items:
        if isinstance(key, Name | Described):
            raise ForeignPickleError("holds more than weights: keys that are no names")
        if not isinstance(key, Plain):
            raise ForeignPickleError(f"holds a {type(key).__name__} as a key")
        if isinstance(key, str) and len(key) > _NAME:
            raise ForeignPickleError(f"holds a name of more than {_NAME} letters")
        found[key] = value
    return found


def _runs(path: str) -> ForeignPickleError:
    return ForeignPickleError(f"holds more than weights: it asks to run {path}, and was refused")


def _made(path: str, arguments: tuple[Any, ...]) -> Any:
    """What a call would give; only those that make containers and plain tensors are known."""
    if path == "collections.OrderedDict":
        return _pairs(_the(list, arguments[0])) if arguments else {}  # Python 2 wrote a list of pairs
    if path == "collections.Counter":  # of a learning rate's schedule
        return _the(dict, arguments[0]) if arguments else {}
    if path in (f"{_TENSOR}tensor_v2", f"{_TENSOR}tensor"):
        return _tensor(*arguments[:4])
    if path == f"{_TENSOR}parameter":
        return _the(Described, arguments[0])
    if path in ("torch.Size", "torch.device"):
        return arguments
    if path.startswith((_TENSOR, "torch._tensor.", "torch.serialization._get_layout")):
        raise ForeignPickleError(f"holds a tensor that is not a plain tensor: {path}")
    raise _runs(path)


def _storage(found: Any) -> Storage:
    kind, key, _, numel, *view = _the(tuple, found)[1:]
    name = _the(Name, kind).path.removeprefix("torch.")
    if found[0] != "storage" or any(part is not None for part in view):
        raise ForeignPickleError("holds more than weights: a reference that is no storage")
    if name not in ELEMENTS:
        raise ForeignPickleError(f"holds numbers that are not plain: {name}")
    if _the(int, numel) < 0:
        raise ValueError("a storage of negative size")
    return Storage(_the(str, key), name, numel)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Described:
    numbers: Sequence[Any] = (offset, *_the(tuple, size), *_the(tuple, stride))
    if len(size) != len(stride) or len(size) > _DIMENSIONS or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError("a tensor's shape is not one")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= _the(Storage, storage).numel:
        raise ValueError("a tensor is larger than its storage")
    return Described(storage, offset, size, stride)
