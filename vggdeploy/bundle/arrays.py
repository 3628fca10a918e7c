"""The golden arrays: ``.npy`` files, read without trusting a single byte of them."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vggdeploy.errors import BundleError, first_line
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import TensorSpec

MAX_BYTES = 2**30  # a golden pair is a few megabytes: what is larger than this is none
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def array_bytes(array: NDArray[np.generic]) -> bytes:
    """An array as the bytes of an ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def read_array(file: HashedFile, spec: TensorSpec) -> NDArray[Any]:
    """The array of an ``.npy`` file: writable, in C order, of the spec's dtype and shape, with one sample at least.

    NumPy's own reader would open zip archives and pickles too, and would allocate what a header asks for before it
    looks whether the file has the bytes.

    Raises:
        BundleError: not an ``.npy`` file, cut short or too long, a pickle, or another dtype or shape; as `HashedFile.read`.
    """
    path, data = file.path, file.read(limit=MAX_BYTES)
    try:
        stream = io.BytesIO(data)
        shape, fortran, dtype = _READ_HEADER[npy.read_magic(stream)](stream)
    except Exception as error:  # NumPy parses the header as Python: a hostile one can fail in any way
        raise _error(path, f"is not an array: {first_line(error)}") from error
    if dtype != np.dtype(spec.dtype) or shape[1:] != spec.item_shape or not shape or shape[0] < 1:
        raise _error(path, f"is {dtype}{list(shape)}; the manifest says {spec}")
    start, count = stream.tell(), math.prod(shape)
    if len(data) - start != count * dtype.itemsize:
        raise _error(path, f"holds {len(data) - start} bytes of numbers; its header says {count * dtype.itemsize}")
    values = np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")
    return np.array(values, order="C")


def _error(path: Path, cause: str) -> BundleError:
    return BundleError(f"{path} {cause}", "export the bundle again")
