"""Protocol buffers, one field at a time: https://protobuf.dev/programming-guides/encoding. Contents are not copied."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

VARINT, _FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, FIXED32: 4}
_FLOAT = struct.Struct("<f")


class Field(NamedTuple):
    """One field of a message: its number, wire type, and content; of a number (`VARINT`) the value stands in ``value``."""

    number: int
    wire: int
    content: memoryview
    value: int = 0

    @property
    def signed(self) -> int:
        """An ``int64``."""
        return self.value - 2**64 if self.value >= 2**63 else self.value

    @property
    def float(self) -> float:
        return float(_FLOAT.unpack(self.content)[0])

    def text(self) -> str:
        return bytes(self.content).decode()


def fields(data: memoryview) -> Iterator[Field]:
    """The fields of one message.

    Raises:
        ValueError: cut short, a group, a field of number 0, a number that is longer than it has to be or has over 64 bits.
    """
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if number == 0 or number >= 2**29:
            raise ValueError(f"field {number}")
        if wire == VARINT:
            start = at
            value, at = _varint(data, at)
            yield Field(number, wire, data[start:at], value)
            continue
        if wire == BYTES:
            length, at = _varint(data, at)
        elif wire in _FIXED:
            length = _FIXED[wire]
        else:
            raise ValueError(f"wire type {wire}")
        if length > end - at:
            raise ValueError("cut short")
        yield Field(number, wire, data[at : at + length])
        at += length


def packed(field: Field) -> Iterator[int]:
    """The numbers of a repeated ``int64``, which are packed or come one by one."""
    if field.wire == VARINT:
        yield field.signed
        return
    at = 0
    while at < len(field.content):
        value, at = _varint(field.content, at)
        yield value - 2**64 if value >= 2**63 else value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if (byte == 0 and shift) or value >= 2**64:
                raise ValueError("a number that is longer than it has to be")
            return value, at
    raise ValueError("a number of more than 64 bits")
