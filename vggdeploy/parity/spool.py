"""Rows of an array that are written once and read many times, of any number, in bounded memory."""

from __future__ import annotations

import weakref
from math import prod
from tempfile import SpooledTemporaryFile
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
IN_MEMORY = 32 * 2**20  # bytes; what is longer goes to a temporary file


class Rows(Protocol):
    """Samples by position, wherever they are: a NumPy array, a `Spool`, or images that are prepared when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Array: ...


class Spool:
    """`Rows` that are appended batch by batch.

    They lie in a temporary file without a name (``TMPDIR`` says where), so that a process that is killed leaves nothing.
    """

    def __init__(self, item_shape: tuple[int, ...], dtype: str) -> None:
        self._shape, self._dtype = item_shape, np.dtype(dtype)
        self._size = prod(item_shape) * self._dtype.itemsize
        self._count = 0
        self._file = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115  # it is closed with this object
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return self._count

    def append(self, rows: Array) -> None:
        """Add a batch ``[n, …]``."""
        self._file.seek(self._count * self._size)
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self._count += len(rows)

    def __getitem__(self, rows: slice, /) -> Array:
        start, stop, step = rows.indices(self._count)
        if step != 1:
            raise ValueError("rows are read in their order")
        count = max(0, stop - start)
        self._file.seek(start * self._size)
        return np.frombuffer(self._file.read(count * self._size), self._dtype).reshape(count, *self._shape)
