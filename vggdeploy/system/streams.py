"""Open files and uploads, as web applications have them: whose bytes they are, and how they are read."""

from __future__ import annotations

import inspect
import os
from typing import Any, Protocol

from vggdeploy.errors import InputError, first_line

_BLOCK = 2**20  # bytes that are asked for at a time
_MAX_NAME = 200  # letters of a name


class BinaryFile(Protocol):
    """An open file, or what a web framework gives for an upload: ``io.BytesIO``, ``SpooledTemporaryFile``, Flask's and
    Django's uploads."""

    def read(self, size: int, /) -> bytes: ...


class Upload(Protocol):
    """An upload whose own ``read`` has to be awaited, with the file below it: FastAPI's and Starlette's ``UploadFile``."""

    @property
    def file(self) -> BinaryFile: ...


def is_file(source: Any) -> bool:
    """Whether it is something that is read: an open file, or an upload."""
    return hasattr(source, "read") and not isinstance(source, os.PathLike)


def name_of(source: Any) -> str:
    """The name that an upload or a file says, which is whatever its sender wanted; "" without one."""
    names = (getattr(source, attribute, None) for attribute in ("filename", "name"))
    said = next((name for name in names if isinstance(name, str) and name), "")[:_MAX_NAME]
    return said if said.isprintable() else ascii(said)


def read_stream(source: BinaryFile | Upload, name: str, limit: int) -> bytes:
    """The rest of an open file, which is put back to where it stood, if it can be.

    Args:
        name: how an error names it.
        limit: bytes that it may have at most: no more are read of what does not end.

    Raises:
        InputError: it cannot be read, is opened as text, has been read to its end, or is too long.
    """
    stream: Any = source
    if inspect.iscoroutinefunction(stream.read):
        stream = getattr(stream, "file", stream)
    if inspect.iscoroutinefunction(stream.read):
        raise InputError(f"{name} can only be read asynchronously", "give its bytes: await file.read()")
    start = _place(stream)
    data = bytearray()
    try:
        while part := stream.read(_BLOCK):
            data += part
            if len(data) > limit:
                raise InputError(f"{name} has more than {limit:,} bytes", "scale it down")
        if start is not None:
            stream.seek(start)
    except TypeError:  # text cannot be added to bytes
        raise InputError(f"{name} is opened as text", "open it in binary mode: open(path, 'rb')") from None
    except (OSError, ValueError) as error:  # a closed file's is a ValueError
        raise InputError(f"{name} cannot be read: {first_line(error)}", "open it anew, or give its bytes") from error
    if start and not data:
        raise InputError(f"{name} has been read to its end", "rewind it first: file.seek(0)")
    return bytes(data)


def _place(stream: Any) -> int | None:
    """Where a file stands, if it can be put there again."""
    try:
        return int(stream.tell()) if stream.seekable() else None
    except (AttributeError, OSError, ValueError):  # a stream of another library's
        return None
