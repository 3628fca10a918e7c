"""The golden images in batches of every kind that a variant promises, and the same batch again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from vggdeploy.bundle import Manifest
from vggdeploy.parity.bounds import clopper_pearson
from vggdeploy.parity.metrics import OutputStats, distance
from vggdeploy.parity.reference import Array, Reference
from vggdeploy.records import BatchParity, OutputParity, Repeats
from vggdeploy.runtime import CheckedSession
from vggdeploy.system.machine import available_memory
from vggdeploy.types import BatchRange

MEMORY_SHARE = 4  # of the available memory a quarter is taken for the activations of the largest batch
EXPORT_BYTES = 512 * 2**20  # … and in an export this much: its peak is the copy of the weights, and stays that
_SCRATCH = 2  # what libraries take beside a layer's input and output: as much again
REPEATS = 459  # calls without a fault: then fewer than 1 in 100 are wrong, with 99% confidence (0.99^459 = 0.01)
REPEAT_SECONDS = 1.0  # of a variant so slow that they would take longer
_THREADS, _CALLS_EACH = 2, 4


def promised(*profiles: BatchRange) -> tuple[int, ...]:
    """Of each profile the smallest size, an odd one, the one that it is optimised for, the next, and the largest."""
    found: set[int] = set()
    for batch in profiles:
        odd = (batch.min + batch.opt) // 2 | 1
        sizes = (batch.min, odd, batch.opt, batch.opt + 1, batch.max)
        found.update(size for size in sizes if batch.min <= size <= batch.max)
    return tuple(sorted(found))


def fitting(manifest: Manifest, sizes: tuple[int, ...], memory: int | None = None) -> tuple[tuple[int, ...], str]:
    """``sizes`` with those above the largest batch that fits into ``memory`` replaced by it, and the sentence about it.

    Args:
        memory: bytes for the activations of one batch. Default: a share of what is available.
    """
    budget = available_memory() // MEMORY_SHARE if memory is None else memory
    largest = max(1, budget // activation_bytes(manifest))
    kept = [size for size in sizes if size <= largest]
    if len(kept) == len(sizes):
        return sizes, ""
    tried = max(largest, sizes[0])  # the smallest one has to run, whatever it takes
    note = (
        f"the largest batch that was run is {tried}, not {sizes[-1]}, whose activations need about "
        f"{sizes[-1] * activation_bytes(manifest) / 2**30:.1f} GiB"
    )
    return tuple(sorted({*kept, tried})), note


def activation_bytes(manifest: Manifest) -> int:
    """About the memory that one image takes inside a graph: the largest input and output of a convolution, in FP32."""
    spec = manifest.spec
    side, widths = spec.image_size, [spec.in_channels]
    largest = 0
    for block in spec.blocks:
        widths = [widths[-1], *block]
        largest = max(largest, *(side * side * (a + b) for a, b in pairwise(widths)))
        side //= 2
    return 4 * largest * _SCRATCH


def batch_outputs(session: CheckedSession, golden: Reference, size: int) -> Iterator[tuple[Array, dict[str, Array]]]:
    """The golden images in batches of exactly ``size``: their rows, and the answers. Small sets are repeated to fill one."""
    count = len(golden.images)
    images, name = golden.images[:], session.inputs[0].name
    last = max(count - size, 0)
    for start in sorted({*range(0, last + 1, size), last}):
        rows = np.arange(start, start + size) % count
        yield rows, session.run({name: images[rows]})


def compare_batch(
    session: CheckedSession, golden: Reference, size: int
) -> tuple[BatchParity, tuple[OutputParity, ...]]:
    """Every answer of batches of ``size``, each image against the reference's own answer for it.

    Raises:
        VggdeployError: the session refuses the batch, or answers with a NaN or infinity.
    """
    stats = {name: OutputStats(name) for name in golden.outputs}
    wanted = {name: rows[:] for name, rows in golden.outputs.items()}
    calls = 0
    for rows, answers in batch_outputs(session, golden, size):
        calls += 1
        for name, stat in stats.items():
            stat.update(wanted[name][rows], answers[name])
    outputs = tuple(stat.result() for stat in stats.values())
    return BatchParity(batch=size, calls=calls, relative_l2=max(o.relative_l2 for o in outputs)), outputs


def repeat(session: CheckedSession, golden: Reference, tolerance: float, *, calls: int = REPEATS) -> Repeats:
    """Ask for the same batch ``calls`` times, as far as `REPEAT_SECONDS` allow, and then from several threads at once.

    Args:
        tolerance: the relative L2 distance up to which two answers count as the same: a GPU may add in another order.
    """
    size = session.batch.min
    feeds = {session.inputs[0].name: golden.images[: max(size, 1)]}
    if len(golden.images) < size:
        feeds = {name: np.resize(array, (size, *array.shape[1:])) for name, array in feeds.items()}
    first = session.run(feeds)

    def differs(_: int) -> bool:
        return not _same(first, session.run(feeds), tolerance)

    end = time.monotonic() + REPEAT_SECONDS
    found: list[bool] = []
    while len(found) < calls and (time.monotonic() < end or not found):
        found.append(differs(len(found)))
    with ThreadPoolExecutor(_THREADS) as pool:
        found += pool.map(differs, range(_THREADS * _CALLS_EACH))
    wrong = sum(found)
    return Repeats(calls=len(found), differing=wrong, threads=_THREADS, upper=clopper_pearson(wrong, len(found))[1])


def _same(one: Mapping[str, Any], other: Mapping[str, Any], tolerance: float) -> bool:
    return all(distance(one[name], other[name]) <= tolerance for name in one)
