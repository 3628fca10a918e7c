"""Pickles, walked opcode by opcode. Nothing is imported, called or built: what comes out is a description."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from vggdeploy.errors import ForeignModelError
from vggdeploy.model.formats.chain import refused

MAX_OPCODES = 1_000_000
_OWN = re.compile(r"__torch__(\.[A-Za-z0-9_]+)*:[A-Za-z0-9_]+")


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names: ``torch:FloatStorage``."""

    text: str


@dataclass(eq=False)
class Made:
    """What calling a `Name` with ``args`` would make, and the state that it would be given."""

    name: str
    args: tuple[Any, ...]
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """What stands outside the pickle: a storage."""

    about: Any


class _Mark:
    pass


# Byte → opcode and what follows it (https://github.com/python/cpython/blob/main/Lib/pickletools.py): a number, a text with its
# length in front, or, for a name, two lines. "" for nothing. Protocol 2 has more; libtorch does not write them.
_TEXT, _LINES, _LONG = "text", "lines", "long"
_OPCODES = {
    0x80: ("PROTO", "<B"), ord("."): ("STOP", ""), ord("("): ("MARK", ""), ord("N"): ("NONE", ""), 0x88: ("NEWTRUE", ""),
    0x89: ("NEWFALSE", ""), ord("K"): ("BININT1", "<B"), ord("M"): ("BININT2", "<H"), ord("J"): ("BININT", "<i"),
    0x8A: ("LONG1", _LONG), ord("G"): ("BINFLOAT", ">d"), ord("X"): ("BINUNICODE", _TEXT), ord(")"): ("EMPTY_TUPLE", ""),
    ord("t"): ("TUPLE", ""), 0x85: ("TUPLE1", ""), 0x86: ("TUPLE2", ""), 0x87: ("TUPLE3", ""), ord("]"): ("EMPTY_LIST", ""),
    ord("e"): ("APPENDS", ""), ord("}"): ("EMPTY_DICT", ""), ord("s"): ("SETITEM", ""), ord("u"): ("SETITEMS", ""),
    ord("q"): ("BINPUT", "<B"), ord("r"): ("LONG_BINPUT", "<I"), ord("h"): ("BINGET", "<B"), ord("j"): ("LONG_BINGET", "<I"),
    ord("c"): ("GLOBAL", _LINES), ord("Q"): ("BINPERSID", ""), ord("R"): ("REDUCE", ""), 0x81: ("NEWOBJ", ""),
    ord("b"): ("BUILD", ""),
}  # fmt: skip


def _opcodes(data: bytes) -> Iterator[tuple[str, Any, int]]:
    """Name, argument and place of each.

    Raises:
        ValueError, LookupError, struct.error: an unknown one, or it is cut short.
    """
    at = 0
    while at < len(data):
        start = at
        name, kind = _OPCODES[data[at]]
        at += 1
        argument: Any = None
        if kind == _TEXT:
            (length,) = struct.unpack_from("<I", data, at)
            content = data[at + 4 : at + 4 + length]
            if len(content) != length:
                raise ValueError("cut short")
            argument, at = content.decode(), at + 4 + length
        elif kind == _LINES:
            middle = data.index(b"\n", at)
            end = data.index(b"\n", middle + 1)
            argument, at = f"{data[at:middle].decode('ascii')}:{data[middle + 1 : end].decode('ascii')}", end + 1
        elif kind == _LONG:
            argument, at = int.from_bytes(data[at + 1 : at + 1 + data[at]], "little", signed=True), at + 1 + data[at]
        elif kind:
            (argument,) = struct.unpack_from(kind, data, at)
            at += struct.calcsize(kind)
        yield name, argument, start


_PUSHED: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"})
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Reader:
    """One pickle of protocol 2, as libtorch writes it.

    Args:
        names: the functions that may be called; a class that `NEWOBJ` makes begins with ``__torch__.``.

    Raises:
        ForeignModelError: any other name or opcode, or a pickle that does not end where it should.
    """

    def __init__(self, data: bytes, names: Collection[str], file: str, entry: str) -> None:
        self._names, self._file, self._entry = names, file, entry
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._marks: list[int] = []  # their places on the stack
        self.value = self._read(data)

    def _refused(self, why: str) -> ForeignModelError:
        return refused(self._file, f"{self._entry} {why}")

    def _read(self, data: bytes) -> Any:
        try:
            for count, (name, argument, at) in enumerate(_opcodes(data)):
                if count > MAX_OPCODES:
                    raise self._refused("has too many opcodes")
                if name == "STOP":
                    if at != len(data) - 1 or len(self._stack) != 1:
                        raise self._refused("does not end where it should")
                    return self._stack[0]
                if (name == "PROTO") != (count == 0) or (count == 0 and argument != 2):
                    raise self._refused("is not of pickle's protocol 2")
                self._apply(name, argument)
        except (ValueError, LookupError, TypeError, AttributeError, StopIteration, struct.error):
            raise self._refused("is no pickle as PyTorch writes it") from None
        raise self._refused("has no end")

    def _apply(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _PUSHED:
            stack.append(_PUSHED[name])
        elif name in _VALUES:
            stack.append(argument)
        elif name in _TUPLES:
            self._replace(_TUPLES[name], tuple(stack[len(stack) - _TUPLES[name] :]))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
            stack.append(_Mark())
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "GLOBAL":
            stack.append(self._named(argument))
        elif name == "BINPERSID":
            stack.append(Stored(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            self._call(name)
        elif name != "PROTO":
            self._fill(name)

    def _fill(self, name: str) -> None:
        """What puts values into what stands below them."""
        stack = self._stack
        match name:
            case "TUPLE":
                items = self._marked()
                stack.append(tuple(items))
            case "APPENDS":
                items = self._marked()
                self._top(list).extend(items)
            case "SETITEMS":
                items = self._marked()
                self._set(items)
            case "SETITEM":
                self._set([stack.pop(-2), stack.pop()])
            case "BUILD":
                state, made = stack.pop(), self._top(Made)
                if not isinstance(state, dict) or made.state:
                    raise self._refused("gives a state to what can have none")
                made.state = state
            case _:
                raise self._refused(f"has the opcode {name}")

    def _named(self, argument: str) -> Name:
        if argument not in self._names and not _OWN.fullmatch(argument):
            raise self._refused(f"names {argument[:200]!r}")
        return Name(argument)

    def _call(self, opcode: str) -> None:
        args, name = self._stack.pop(), self._stack.pop()
        own = isinstance(name, Name) and name.text.startswith("__torch__.")
        if not isinstance(name, Name) or not isinstance(args, tuple) or own != (opcode == "NEWOBJ"):
            raise self._refused("calls what is no function")
        self._stack.append(Made(name.text, args))

    def _replace(self, count: int, value: Any) -> None:
        if len(self._stack) < count or any(isinstance(item, _Mark) for item in self._stack[-count:]):
            raise self._refused("takes what is not there")
        del self._stack[-count:]
        self._stack.append(value)

    def _marked(self) -> list[Any]:
        place = self._marks.pop()
        if place >= len(self._stack) or not isinstance(self._stack[place], _Mark):
            raise self._refused("takes what is not there")
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise self._refused("puts values into what takes none")
        return self._stack[-1]

    def _set(self, items: list[Any]) -> None:
        fields = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) or key in fields:
                named = key[:100] if isinstance(key, str) else type(key).__name__
                raise self._refused(f"sets {named!r} twice, or under no name")
            fields[key] = value
