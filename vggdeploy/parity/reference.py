"""The reference that variants are compared with: inputs, the FP32 PyTorch model's outputs for them, and their spool."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, repeat
from math import prod
from tempfile import SpooledTemporaryFile
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import Bundle
from vggdeploy.errors import counted
from vggdeploy.runtime import CheckedSession
from vggdeploy.runtime.sessions import in_order, run_batch
from vggdeploy.types import ImageSource, TensorSpec

Array = NDArray[Any]

GOLDEN = "golden pair"
# A feature map of one image can have more values than the class scores of ten thousand: what is kept is bounded.
KEPT_BYTES = 2**30  # of the reference's outputs, on disk but for the first of them (see `Spool`)
BATCH_BYTES = 64 * 2**20  # of one batch's outputs
IN_MEMORY = 32 * 2**20  # of a `Spool`; what is longer goes to a temporary file
_AHEAD = 2  # batches that are prepared while the session runs one


class Rows(Protocol):
    """Samples by position, wherever they are: a NumPy array, a `Spool`, or images that are prepared when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Array: ...


@dataclass(frozen=True)
class Reference:
    """Inputs with the reference's outputs for them, and the true labels where there are any. A record calls them ``data``.

    Each output is that of the first images, of as many as it has rows: of large feature maps those are few.
    """

    images: Rows
    outputs: Mapping[str, Rows]
    data: str
    labels: NDArray[np.int64] | None = None
    source: ImageSource = ImageSource.REAL


def run_all(session: CheckedSession, images: Rows, sizes: Iterable[int] = ()) -> Iterator[dict[str, Array]]:
    """The session's outputs for ``images``, a batch at a time. Only a few batches of images are in memory at once.

    Args:
        sizes: of the first batches; the rest have the size that the variant is optimised for.
    """
    fitting = max(session.batch.min, BATCH_BYTES // sum(map(sample_bytes, session.outputs)))
    usual = min(session.batch.opt, fitting)

    def batches() -> Iterator[slice]:
        start = 0
        for size in chain((min(size, fitting) for size in sizes), repeat(usual)):
            if start >= len(images):
                return
            yield slice(start, min(start + size, len(images)))
            start += size

    with closing(in_order(images.__getitem__, batches(), ahead=_AHEAD)) as prepared:
        for _, batch in prepared:
            yield run_batch(session, batch.result())


def reference_outputs(
    session: CheckedSession,
    images: Rows,
    *,
    data: str,
    labels: NDArray[np.int64] | None = None,
    source: ImageSource = ImageSource.REAL,
) -> Reference:
    """Run the reference once; its outputs serve every variant. Of each output `kept_rows` are kept."""
    rows = kept_rows(session.outputs, len(images))
    count = max(rows.values())
    if count < len(images):
        images, data = FirstRows(images, count), f"{data}, the first {count}"
    outputs = {s.name: Spool(s.item_shape, s.dtype) for s in session.outputs}
    for batch in run_all(session, images):
        for name, kept in outputs.items():
            kept.append(batch[name][: rows[name] - len(kept)])
    kept_labels = None if labels is None else labels[:count]
    return Reference(images=images, outputs=outputs, data=data, labels=kept_labels, source=source)


@dataclass(frozen=True)
class FirstRows:
    """The first ``count`` of some rows."""

    rows: Rows
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice, /) -> Array:
        start, stop, _ = rows.indices(self.count)
        return self.rows[start:stop]


def sample_bytes(output: TensorSpec) -> int:
    """Bytes of one sample of an output."""
    return prod(output.item_shape) * np.dtype(output.dtype).itemsize


def kept_rows(outputs: Sequence[TensorSpec], images: int, *, limit: int = KEPT_BYTES) -> dict[str, int]:
    """How many images' rows of each output are kept, so that all of them fit into about ``limit`` bytes.

    Small outputs take what they need and the large ones share what is left: so class scores are kept of every image,
    however large the maps beside them are. Before that, an eighth of the bytes is shared out evenly in rows, one at
    least: no output has fewer than the golden pair takes.
    """
    together = sum(map(sample_bytes, outputs))
    same = min(images, max(1, limit // 8 // together))
    left = max(0, limit - same * together)
    rows: dict[str, int] = {}
    for index, output in enumerate(sorted(outputs, key=sample_bytes)):
        size = sample_bytes(output)
        more = min(images - same, left // (len(outputs) - index) // size)
        rows[output.name] = same + more
        left -= more * size
    return rows


def golden_reference(bundle: Bundle) -> Reference:
    """The pair that travels in the bundle: a reference that needs no torch."""
    inputs, outputs = bundle.golden()
    images = inputs[bundle.manifest.input.name]
    return golden_pair(images, outputs)


def golden_pair(images: Rows, outputs: Mapping[str, Rows]) -> Reference:
    """Inputs and the reference's outputs for them, as a golden pair."""
    return Reference(images, dict(outputs), f"{GOLDEN} ({counted(len(images), 'image')})", source=ImageSource.GOLDEN)


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
