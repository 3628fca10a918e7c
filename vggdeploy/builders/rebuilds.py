"""How much rebuilds of one engine differ: in bytes, in build time, and in latency where it can run."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from vggdeploy.builders.cache import ENGINE, Made
from vggdeploy.builders.request import BuildRequest
from vggdeploy.bundle import Bundle, RebuildSpread, Variant
from vggdeploy.files import scratch_directory
from vggdeploy.runtime import open_session, runnable
from vggdeploy.runtime.batches import run_batch
from vggdeploy.types import OnProgress, silent

WARM_UP = 10
CALLS = 100


def spread(
    bundle: Bundle,
    request: BuildRequest,
    variant: Variant,
    first: Made,
    builds: int,
    on_progress: OnProgress = silent,
) -> RebuildSpread:
    """Build ``builds`` − 1 times more, and compare with the ``first``. Each engine is gone before the next is built."""
    source = bundle.path(request.source.path)
    runs = runnable(variant).runs
    hashes, sizes, seconds = {first.entry.sha256}, [first.entry.size], [first.entry.seconds]
    latencies = [_p50(bundle, variant, first.path, first.entry.sha256)] if runs else []
    for number in range(2, builds + 1):
        with scratch_directory(bundle.root) as scratch:
            built = request.build(source, scratch / ENGINE, _numbered(on_progress, number, builds))
            hashes.add(built.sha256)
            sizes.append(built.size)
            seconds.append(built.seconds)
            if runs:
                latencies.append(_p50(bundle, variant, scratch / ENGINE, built.sha256))
    return RebuildSpread(
        builds=builds,
        distinct=len(hashes),
        sizes=tuple(sizes),
        seconds=tuple(round(value, 3) for value in seconds),
        p50_ms=tuple(round(value, 4) for value in latencies),
    )


def _numbered(on_progress: OnProgress, number: int, builds: int) -> OnProgress:
    return lambda share, phase: on_progress(share, f"build {number} of {builds}: {phase}")


def _p50(bundle: Bundle, variant: Variant, engine: Path, sha256: str) -> float:
    """Median milliseconds of a batch of the optimal size, from the golden images."""
    inputs, _ = bundle.golden()
    images = np.resize(inputs[bundle.manifest.input.name], (variant.batch.opt, *bundle.manifest.input.item_shape))
    times = []
    with open_session(bundle, variant, file=(engine, sha256)) as session:
        for call in range(WARM_UP + CALLS):
            start = time.perf_counter_ns()
            run_batch(session, images)
            if call >= WARM_UP:
                times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e6
