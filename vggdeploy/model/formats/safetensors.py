"""The header of a safetensors file, checked before the library that maps its numbers: https://github.com/huggingface/safetensors."""

from __future__ import annotations

import json
from math import prod
from typing import Any

import msgspec

MAX_HEADER = 8 * 2**20  # 150 bytes a tensor: a VGG of 256 convolutions with batch norm has 1,800
_LENGTH = 8
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor: its type, shape, and where its numbers begin and end behind the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def check_safetensors(data: memoryview) -> dict[str, Entry]:
    """What a file holds, by name. Whether those are a network's weights is the business of whoever knows the network.

    Raises:
        ValueError: a header that is too long, is no such JSON or has a name twice; numbers that are not there, lie in
            each other or belong to no tensor.
    """
    length = int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH or not 2 <= length <= min(MAX_HEADER, len(data) - _LENGTH):
        raise ValueError(f"its header of {length:,} bytes is not there, or too long")
    entries = _entries(bytes(data[_LENGTH : _LENGTH + length]))
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        start, stop = entry.data_offsets
        whole = all(0 <= side < 2**31 for side in entry.shape) and len(entry.shape) <= 8
        if not whole or start != end or stop - start != prod(entry.shape) * _SIZES.get(entry.dtype, -1):
            raise ValueError(f"the numbers of {name[:200]} are not where they belong")
        end = stop
    if end != len(data) - _LENGTH - length:
        raise ValueError("it has bytes that belong to no tensor, or misses some")
    return entries


def _entries(header: bytes) -> dict[str, Entry]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("it has a name twice")
        return dict(pairs)

    try:
        document = json.loads(header, object_pairs_hook=unique)
        document.pop("__metadata__", None)
        return msgspec.convert(document, dict[str, Entry])
    except (RecursionError, AttributeError, TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"its header is not safetensors' ({error})") from error
