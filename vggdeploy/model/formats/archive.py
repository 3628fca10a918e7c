"""The zip archives that PyTorch writes, read without trust: every byte belongs to one entry, and no two readers can differ.

The format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, sections 4.3.7 to 4.3.16.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from vggdeploy.model.formats.chain import refused

MAX_ENTRIES = 8192
MAX_TEXT = 8 * 2**20  # of all entries that are unpacked, together
_LOCAL, _CENTRAL = struct.Struct("<4s5HIIIHH"), struct.Struct("<4s6HIIIHHHHHII")
_DESCRIPTOR, _END = struct.Struct("<4sIII"), struct.Struct("<4s4HIIH")
_END_64, _LOCATOR = struct.Struct("<4sQ2HII4Q"), struct.Struct("<4sIQI")
_DESCRIBED, _UTF8 = 0x0008, 0x0800  # sizes stand behind the data; names are UTF-8
_STORED, _DEFLATED = 0, 8
_NAME = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+")


@dataclass(frozen=True)
class _Record:
    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


class Archive:
    """Entry → where its bytes lie, without the directory that all names begin with.

    Raises:
        ForeignModelError: anything that PyTorch's own writer does not do: gaps, overlaps, comments, other methods, names
            twice or with ``..``, local headers that are not the directory's.
    """

    def __init__(self, data: memoryview, file: str) -> None:
        self._data, self._file, self._unpacked = data, file, 0
        try:
            self._entries = self._read()
        except (struct.error, UnicodeDecodeError):
            raise refused(file, "it is no whole zip archive") from None

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: record.size for name, (record, _) in self._entries.items()}

    def read(self, name: str) -> bytes:
        """An entry's bytes.

        Raises:
            ForeignModelError: there is none of this name, it is damaged, or there would be too much to unpack.
        """
        if name not in self._entries:
            raise refused(self._file, f"it has no {name}")
        record, start = self._entries[name]
        self._unpacked += record.size
        if self._unpacked > MAX_TEXT:
            raise refused(self._file, f"its code has more than {MAX_TEXT} bytes")
        packed = self._data[start : start + record.packed]
        content = bytes(packed) if record.method == _STORED else self._inflate(packed, record)
        if len(content) != record.size or zlib.crc32(content) != record.crc:
            raise refused(self._file, f"{name} is damaged")
        return content

    def _inflate(self, packed: memoryview, record: _Record) -> bytes:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = stream.decompress(packed, record.size + 1)
        except zlib.error:
            raise refused(self._file, f"{record.name} is damaged") from None
        if not stream.eof or stream.unused_data:
            raise refused(self._file, f"{record.name} unpacks to another size than it says")
        return content

    def _read(self) -> dict[str, tuple[_Record, int]]:
        data, end = self._data, len(self._data) - _END.size
        if end < 0:
            raise refused(self._file, "it is no whole zip archive")
        magic, *disks, here, total, size, start, comment = _END.unpack_from(data, end)
        if magic != b"PK\5\6" or any(disks) or here != total or comment or not 0 < total <= MAX_ENTRIES:
            raise refused(self._file, "it does not end as PyTorch ends an archive")
        end = self._before_zip64(end, (total, size, start))
        if start + size != end:
            raise refused(self._file, "there are bytes between its parts")
        entries: dict[str, tuple[_Record, int]] = {}
        seen: set[str] = set()
        at, place, top = start, 0, ""
        for _ in range(total):
            record, at = self._central(at, end)
            first, _, name = record.name.partition("/")
            top = top or first
            if first != top or not name or name.lower() in seen:  # PyTorch's reader does not tell A from a
                raise refused(self._file, f"it has the entry {record.name!r} twice, or in another directory")
            seen.add(name.lower())
            if record.offset != place:
                raise refused(self._file, f"its entry {name} does not follow the one before it")
            entries[name] = (record, self._content(record))
            place = self._behind(record, entries[name][1])
        if at != end or place != start:
            raise refused(self._file, "there are bytes between its parts")
        return entries

    def _before_zip64(self, end: int, told: tuple[int, int, int]) -> int:
        """Where the directory has to end: before the same numbers in 64 bits, where there are any."""
        locator = end - _LOCATOR.size
        if locator < _END_64.size or bytes(self._data[locator : locator + 4]) != b"PK\6\7":
            return end
        _, _, place, _ = _LOCATOR.unpack_from(self._data, locator)
        if place != locator - _END_64.size:
            raise refused(self._file, "there are bytes between its parts")
        magic, length, _, _, disk, first, here, *again = _END_64.unpack_from(self._data, place)
        if magic != b"PK\6\6" or length != _END_64.size - 12 or disk or first or here != told[0]:
            raise refused(self._file, "it does not end as PyTorch ends an archive")
        if tuple(again) != told:
            raise refused(self._file, "it has two directories")
        return place

    def _central(self, at: int, end: int) -> tuple[_Record, int]:
        magic, _, _, flags, method, _, _, crc, packed, size, named, extra, comment, disk, _, _, offset = (
            _CENTRAL.unpack_from(self._data, at)
        )
        behind = at + _CENTRAL.size + named + extra + comment
        if magic != b"PK\1\2" or extra or comment or disk or behind > end:
            raise refused(self._file, "its directory is not PyTorch's")
        name = bytes(self._data[at + _CENTRAL.size : behind]).decode("ascii")
        if not _NAME.fullmatch(name) or any(set(part) == {"."} for part in name.split("/")):
            raise refused(self._file, f"it has an entry named {name[:200]!r}")
        if flags & ~(_DESCRIBED | _UTF8) or method not in (_STORED, _DEFLATED):
            raise refused(self._file, f"its entry {name} is packed in a way that PyTorch does not use")
        if method == _STORED and packed != size:
            raise refused(self._file, f"its entry {name} has two sizes")
        return _Record(name, flags, method, crc, packed, size, offset), behind

    def _content(self, record: _Record) -> int:
        """Where an entry's bytes begin; its local header has to be that of the directory."""
        magic, _, flags, method, _, _, crc, packed, size, named, extra = _LOCAL.unpack_from(self._data, record.offset)
        start = record.offset + _LOCAL.size
        name = bytes(self._data[start : start + named]).decode("ascii")
        numbers = (0, 0, 0) if flags & _DESCRIBED else (record.crc, record.packed, record.size)
        same = (magic, name, flags, method) == (b"PK\3\4", record.name, record.flags, record.method)
        if not same or (crc, packed, size) != numbers or start + named + extra + record.packed > len(self._data):
            raise refused(self._file, f"its entry {record.name} has another header than the directory says")
        return start + named + extra

    def _behind(self, record: _Record, start: int) -> int:
        end = start + record.packed
        if not record.flags & _DESCRIBED:
            return end
        told = _DESCRIPTOR.unpack_from(self._data, end)
        if told != (b"PK\7\x08", record.crc, record.packed, record.size):
            raise refused(self._file, f"its entry {record.name} has another size than the directory says")
        return end + _DESCRIPTOR.size
