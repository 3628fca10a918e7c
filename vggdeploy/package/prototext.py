"""Protobuf's text format, as far as a Triton configuration needs it: written without protobuf, and tested against it.

https://protobuf.dev/reference/protobuf/textformat-spec
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Union


class Word(str):
    """A bare word: the name of an enumeration's value."""

    __slots__ = ()


Message = list[tuple[str, "Value"]]
Value = Union[str, int, bool, "Message"]


def to_text(message: Message) -> str:
    """``[("name", "vgg"), ("input", [("dims", 3)])]`` as text. A repeated field is a name that comes several times."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def map_field(name: str, entries: Iterable[tuple[str, Value]]) -> Message:
    """A map as the text format has it: one message of key and value an entry."""
    return [(name, [("key", key), ("value", value)]) for key, value in entries]


def _lines(message: Message, indent: str) -> Iterator[str]:
    for name, value in message:
        if isinstance(value, list):
            yield f"{indent}{name} {{"
            yield from _lines(value, f"{indent}  ")
            yield f"{indent}}}"
        else:
            yield f"{indent}{name}: {_scalar(value)}"


def _scalar(value: str | int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word | int):
        return str(value)
    return '"' + "".join(map(_byte, value.encode())) + '"'


def _byte(code: int) -> str:
    """A byte of a string: quotes and backslashes escaped, what is not printable ASCII in octal."""
    character = chr(code)
    if character in '"\\':
        return f"\\{character}"
    return character if 32 <= code < 127 else f"\\{code:03o}"
