"""Take one engine of a bundle apart on its GPU, on real inputs."""

from __future__ import annotations

from collections.abc import Sequence

from vggdeploy.bench.gpu import measure_gpu
from vggdeploy.bench.gpu_records import GpuReport
from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import IncompatibleError, UsageError
from vggdeploy.pipeline.bench import POOL, BenchPlan
from vggdeploy.pipeline.samples import measuring_pool
from vggdeploy.runtime.registry import ENGINES
from vggdeploy.selection import select
from vggdeploy.types import Device, OnProgress, silent


def bench_gpu(
    bundle: Bundle,
    plan: BenchPlan = BenchPlan(),
    *,
    streams: Sequence[int] = (1, 2, 4),
    on_progress: OnProgress = silent,
) -> GpuReport:
    """Measure one engine: the one that is named, else the best of the named backends, else the best there is.

    Raises:
        UsageError: several variants.
        IncompatibleError: no engine of the bundle runs here.
    """
    if len(plan.variants) > 1:
        raise UsageError(f"{len(plan.variants)} variants", "one engine at a time is taken apart: give one --variant")
    where = plan.device or Device("cuda")
    chosen = _choose(bundle, plan.backends or [engine.name for engine in ENGINES], plan.variants, where)
    pool = measuring_pool(bundle, plan.data, POOL, plan.data_dir)
    return measure_gpu(
        bundle,
        chosen,
        pool.images,
        device=where,
        batches=plan.batches,
        streams=streams,
        seconds=plan.seconds,
        on_progress=on_progress,
    )


def _choose(bundle: Bundle, backends: Sequence[str], variants: Sequence[str], device: Device) -> Variant:
    if variants:
        return select(bundle, variant=variants[0], device=device)[0]
    refused: list[IncompatibleError] = []
    for backend in backends:
        try:
            return select(bundle, backend=backend, device=device)[0]
        except IncompatibleError as error:
            refused.append(error)
    raise IncompatibleError("; ".join(error.cause for error in refused), refused[-1].hint)
