"""What each kernel of a variant takes, joined to the network's layers. Apart from the benchmark: timing slows it down."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from vggdeploy.bench.candidates import Candidate, judge_golden
from vggdeploy.bench.run import POOL, BenchPlan
from vggdeploy.bundle import Bundle, Variant
from vggdeploy.bundle.store import now
from vggdeploy.engine.selection import select
from vggdeploy.errors import IncompatibleError, UsageError, VggdeployError
from vggdeploy.parity.reference import Array
from vggdeploy.records.profile import KernelRow, ProfileReport, VariantProfile
from vggdeploy.runtime import CheckedSession, backend_for, open_session, runnable
from vggdeploy.runtime.base import Kernel
from vggdeploy.runtime.kernels import LayerMap, layer_map
from vggdeploy.runtime.registry import default_device
from vggdeploy.runtime.sessions import open_profiled
from vggdeploy.system.machine import machine, usable_cores
from vggdeploy.types import Device, OnProgress, silent
from vggdeploy.verify.prove import tool_versions
from vggdeploy.verify.samples import measuring_pool

MIN_CALLS = 10


def profile_layers(
    bundle: Bundle, plan: BenchPlan = BenchPlan(), *, threads: int | None = None, on_progress: OnProgress = silent
) -> ProfileReport:
    """Time the kernels of the named variants; by default of every one that runs here and whose library can.

    Raises:
        UsageError: a variant whose backend does not time its layers; no batch size that fits.
        IncompatibleError: something asked for cannot run here, or nothing can.
    """
    pool = measuring_pool(bundle, plan.data, POOL, plan.data_dir)
    variants = _chosen(bundle, plan)
    work = [(v, batch) for v in variants for batch in _fitting(v, plan.batches, len(pool.images))]
    profiles = []
    for number, (variant, batch) in enumerate(work):
        on_progress(number / len(work), f"{variant.name}, batch {batch}")
        profiles.append(_profile(bundle, variant, pool.images, batch, plan, threads))
    return ProfileReport(
        bundle=str(bundle.root),
        created=now(),
        machine=machine(),
        threads=threads or usable_cores(),
        data=pool.data,
        profiles=tuple(profiles),
        tools=tool_versions(),
    )


def _chosen(bundle: Bundle, plan: BenchPlan) -> list[Variant]:
    named = [v for name in plan.variants for v in select(bundle, variant=name, device=plan.device)]
    named += [v for name in plan.backends for v in select(bundle, backend=name, device=plan.device)]
    if named:
        return list({v.name: v for v in named}.values())
    able = [v for v in bundle.manifest.variants if _device(v, plan).kind in backend_for(v).profiles_on]
    here = [v for v in able if runnable(v, plan.device).runs]
    if not here:
        raise IncompatibleError(
            f"no variant of {bundle.root} whose library times its layers runs here", "run: vggdeploy doctor"
        )
    return here


def _device(variant: Variant, plan: BenchPlan) -> Device:
    return plan.device or default_device(backend_for(variant))


def _fitting(variant: Variant, batches: Sequence[int], images: int) -> list[int]:
    most = min(variant.batch.max, images)
    fitting = [batch for batch in batches if variant.batch.min <= batch <= most]
    if not fitting:
        told = ", ".join(map(str, batches))
        raise UsageError(
            f"{variant.name} cannot be timed with batches of {told}: it takes {variant.batch.min} to {most}",
            f"give one in that range: --batch {variant.batch.min}",
        )
    return fitting


def _profile(
    bundle: Bundle, variant: Variant, images: Array, batch: int, plan: BenchPlan, threads: int | None
) -> VariantProfile:
    device = _device(variant, plan)
    with open_session(bundle, variant, device=device, threads=threads) as plain:
        verdict, reasons = judge_golden(plain, bundle, variant, device, (batch,))
        undisturbed = _calls(plain, images, batch, plan.seconds / 2)
    with open_profiled(bundle, variant, device=device, threads=threads) as timed:
        calls = _calls(timed, images, batch, plan.seconds / 2)
        kernels = timed.profiled.kernels()[-len(calls) :]
    names = layer_map(bundle, variant)
    sums = [sum(kernel.ms for kernel in call) for call in kernels]
    return VariantProfile(
        variant=variant.name,
        backend=backend_for(variant).name,
        device=str(device),
        sha256=bundle.sha256(variant.path),
        batch=batch,
        calls=len(calls),
        plain_ms=median(undisturbed),
        call_ms=median(calls),
        kernels_ms=median(sums),
        overhead_ms=median(whole - part for whole, part in zip(calls, sums, strict=True)),
        kernels=kernel_rows(kernels, names),
        unnamed=names.missing,
        verdict=verdict,
        reasons=reasons,
    )


def _calls(session: CheckedSession, images: Array, batch: int, seconds: float) -> list[float]:
    """Milliseconds of each call on the next batch of distinct images, after a warm-up."""
    candidate = Candidate(session, images, batch)
    candidate.warm_up()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < MIN_CALLS or time.perf_counter() < end:
        taken.append(candidate.call() / 1e6)
    return taken


def kernel_rows(calls: Sequence[tuple[Kernel, ...]], names: LayerMap) -> tuple[KernelRow, ...]:
    """A row for each kernel in the order of execution, with its median over the calls.

    Raises:
        VggdeployError: the library timed other kernels in one call than in another: there is no median of those.
    """
    first = calls[0] if calls else ()
    if not first or any([k.name for k in call] != [k.name for k in first] for call in calls):
        raise VggdeployError(
            "the library did not time the same kernels in every call",
            "run it again, with one --variant and one --batch",
        )
    layers = names.layers([kernel.nodes for kernel in first])
    times = [median(ms) for ms in zip(*([kernel.ms for kernel in call] for call in calls), strict=True)]
    return tuple(
        KernelRow(kernel=kernel.name, kind=kernel.kind, layers=of, ms=ms)
        for kernel, of, ms in zip(first, layers, times, strict=True)
    )
