"""An engine taken apart on its GPU: transfers and computation by CUDA events, graphs, streams, memory, energy, the roof."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle

import msgspec
import numpy as np

from vggdeploy.bench.candidates import starts
from vggdeploy.bench.gpu.nvml import GpuWatch
from vggdeploy.bench.gpu.roof import measure_roof
from vggdeploy.bench.gpu.trtexec import find_trtexec, trtexec_rows
from vggdeploy.bench.run import POOL, BenchPlan
from vggdeploy.bundle import Bundle, Variant
from vggdeploy.bundle.store import now
from vggdeploy.engine.selection import select
from vggdeploy.errors import IncompatibleError, UsageError
from vggdeploy.model.outputs import macs_of
from vggdeploy.parity.reference import Array
from vggdeploy.records.gpu import GpuLoad, GpuReport, GpuSamples, GpuTimes, Roof
from vggdeploy.runtime import CheckedSession, GpuOptions, backend_for, open_session
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.gpu.lane import Lane
from vggdeploy.runtime.registry import ENGINES
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.system.machine import machine
from vggdeploy.types import Device, OnProgress, Precision, silent
from vggdeploy.verify.samples import measuring_pool

WARMUP_CALLS = 5  # a graph is captured at the second, and RTX's kernels are compiled at the first
# Of work before a clock runs, or the measuring time where that is less: a GPU at rest has lower clocks.
WARM_SECONDS = 0.5
MIN_CALLS = 10


@dataclass(frozen=True)
class _Subject:
    """One engine, where and on what it is measured."""

    bundle: Bundle
    variant: Variant
    device: Device
    images: Array
    seconds: float
    macs: int

    def open(self, stack: ExitStack, *, graphs: bool, contexts: int) -> CheckedSession:
        options = GpuOptions(contexts=contexts, graphs=graphs)
        return stack.enter_context(open_session(self.bundle, self.variant, device=self.device, gpu=options))

    def batches(self, size: int, first: int = 0) -> Iterator[dict[str, Array]]:
        """Batches of distinct images from the ``first`` on, through the pool for ever. They are views: nothing is copied
        between two calls."""
        name = self.bundle.manifest.input.name
        parts = [{name: self.images[start : start + size]} for start in starts(len(self.images), size)]
        first %= len(parts)
        return cycle([*parts[first:], *parts[:first]])

    @property
    def warm_seconds(self) -> float:
        return min(WARM_SECONDS, self.seconds)


def measure_gpu(
    bundle: Bundle,
    variant: Variant,
    images: Array,
    *,
    device: Device | None = None,
    batches: Sequence[int] = (1, 8, 32),
    streams: Sequence[int] = (1, 2, 4),
    seconds: float = 1.0,
    on_progress: OnProgress = silent,
) -> GpuReport:
    """Measure an engine of the TensorRT backends: every batch size with and without CUDA graphs, every number of streams.

    Args:
        images: the pool of distinct inputs, as the graph wants them. Batches walk through it.
        seconds: measuring time of each of the tables' rows.

    Raises:
        UsageError: a batch outside the engine's range, or one larger than the pool; no number of streams.
        IncompatibleError: no TensorRT engine, or it cannot run here.
    """
    _check(variant, images, batches, streams)
    where = device or Device("cuda")
    gpu = cuda.find_gpu(where)
    subject = _Subject(
        bundle,
        variant,
        where,
        images,
        seconds,
        macs_of(bundle.manifest.spec, [o.name for o in bundle.manifest.outputs]),
    )
    on_progress(0.0, "roof")
    roof, missing = _roof(where, variant.precision)
    times: list[GpuTimes] = []
    loads: list[GpuLoad] = []
    with ExitStack() as stack:
        session, engine_bytes = _opened(stack, subject, contexts=max(streams))
        context_bytes = _context_bytes(_engine(session), max(streams))
        for number, batch in enumerate(batches):
            on_progress(number / len(batches) / 2, f"batch {batch}")
            times.append(_times(subject, session, batch, graphs=True, roof=roof))
            loads += [_load(subject, session, batch, n, graphs=True) for n in streams]
    with ExitStack() as stack:
        session = subject.open(stack, graphs=False, contexts=1)
        for number, batch in enumerate(batches):
            on_progress((1 + number / len(batches)) / 2, f"batch {batch} without graphs")
            times.append(_times(subject, session, batch, graphs=False, roof=roof))
            loads.append(_load(subject, session, batch, 1, graphs=False))
    return GpuReport(
        bundle=str(bundle.root),
        created=now(),
        machine=machine(),
        variant=variant.name,
        backend=backend_for(variant).name,
        sha256=bundle.sha256(variant.path),
        device=str(where),
        gpu=gpu.name,
        capability=gpu.capability,
        driver=gpu.driver,
        macs=subject.macs,
        roof=roof,
        roof_missing=missing,
        engine_bytes=engine_bytes,
        context_bytes=context_bytes,
        times=tuple(times),
        loads=tuple(loads),
    )


def _check(variant: Variant, images: Array, batches: Sequence[int], streams: Sequence[int]) -> None:
    if not backend_for(variant).builds_on:
        raise IncompatibleError(
            f"{variant.name} is no TensorRT engine: its parts cannot be measured", "build one: vggdeploy build BUNDLE"
        )
    if not batches or not streams or min(streams) < 1:
        raise UsageError(
            f"batches {list(batches)} on {list(streams)} streams cannot be measured", "give at least one of each"
        )
    for batch in batches:
        if not variant.batch.min <= batch <= variant.batch.max:
            raise UsageError(
                f"batch {batch} is outside {variant.batch.min}…{variant.batch.max}", "choose another --batch"
            )
        if batch > len(images):
            raise UsageError(f"batch {batch} needs more distinct images than the {len(images)}", "use a smaller batch")


def _roof(device: Device, precision: Precision) -> tuple[Roof | None, str]:
    try:
        return measure_roof(device, precision), ""
    except IncompatibleError as error:
        return None, error.cause


def _opened(stack: ExitStack, subject: _Subject, *, contexts: int) -> tuple[CheckedSession, int]:
    """A session, and the GPU memory that it took."""
    cuda.use(subject.device)
    before = cuda.memory()[0]
    session = subject.open(stack, graphs=True, contexts=contexts)
    return session, before - cuda.memory()[0]


def _engine(session: CheckedSession) -> EngineSession:
    inner = session.unchecked
    assert isinstance(inner, EngineSession)  # noqa: S101  # _check saw to that
    return inner


def _context_bytes(session: EngineSession, contexts: int) -> int | None:
    """GPU memory of a second context; None where only one was asked for, or has room."""
    if contexts < 2:
        return None
    before = cuda.memory()[0]
    with session.lane(), session.lane():
        return before - cuda.memory()[0] if len(session.pool.lanes) > 1 else None


def _times(subject: _Subject, session: CheckedSession, batch: int, *, graphs: bool, roof: Roof | None) -> GpuTimes:
    feeds = subject.batches(batch)
    engine = _engine(session)
    parts: list[tuple[float, float, float]] = []
    whole: list[float] = []
    bare: list[float] = []
    with engine.lane() as lane:
        _warm_up(lane, feeds, subject.warm_seconds)
        end = time.perf_counter() + subject.seconds
        while len(parts) < MIN_CALLS or time.perf_counter() < end:
            lane.stage(next(feeds))
            parts.append(_by_parts(lane, batch))
            whole.append(_as_a_whole(lane, batch))
            bare.append(_computation(lane, batch))
        used, refused = _graph(lane, batch, graphs)
    host: list[float] = []
    end = time.perf_counter() + subject.seconds / 2
    while len(host) < MIN_CALLS or time.perf_counter() < end:
        feed = next(feeds)
        start = time.perf_counter_ns()
        engine.run(feed)
        host.append((time.perf_counter_ns() - start) / 1e6)
    h2d, compute, d2h = (float(np.median(column)) for column in zip(*parts, strict=True))
    tera_ops = 2 * subject.macs * batch / (compute * 1e-3) / 1e12
    return GpuTimes(
        batch=batch,
        graph=used,
        graph_refused=refused,
        calls=len(parts),
        h2d_ms=h2d,
        compute_ms=compute,
        d2h_ms=d2h,
        device_ms=float(np.median(whole)),
        host_ms=float(np.median(host)),
        host_compute_ms=float(np.median(bare)),
        tera_ops=tera_ops,
        roof_share=tera_ops / roof.tera_ops if roof else None,
    )


def _warm_up(lane: Lane, feeds: Iterator[dict[str, Array]], seconds: float) -> None:
    """Until its context and its graph are there, and the GPU's clocks are those of work."""
    end = time.perf_counter() + seconds
    calls = 0
    while calls < WARMUP_CALLS or time.perf_counter() < end:
        batch = lane.stage(next(feeds))
        lane.enqueue(batch)
        lane.settle()
        calls += 1


def _by_parts(lane: Lane, batch: int) -> tuple[float, float, float]:
    """Milliseconds of H2D, computation and D2H of the staged batch, on the GPU's clock."""
    events = [cuda.Event(timing=True) for _ in range(4)]
    events[0].record(lane.stream)
    lane.copy_in(batch)
    events[1].record(lane.stream)
    lane.execute(batch)
    events[2].record(lane.stream)
    lane.copy_out(batch)
    events[3].record(lane.stream)
    lane.settle()
    h2d, compute, d2h = (events[i + 1].since(events[i]) for i in range(3))
    return h2d, compute, d2h


def _as_a_whole(lane: Lane, batch: int) -> float:
    start, end = cuda.Event(timing=True), cuda.Event(timing=True)
    start.record(lane.stream)
    lane.enqueue(batch)
    end.record(lane.stream)
    lane.settle()
    return end.since(start)


def _computation(lane: Lane, batch: int) -> float:
    """Milliseconds on the host's clock from the launch to the end of the computation, without transfers."""
    start = time.perf_counter_ns()
    lane.execute(batch)
    lane.settle()
    return (time.perf_counter_ns() - start) / 1e6


def _graph(lane: Lane, batch: int, asked: bool) -> tuple[str, str]:
    if batch in lane.graphs.sizes:
        return "session", ""
    if asked and not lane.captures:
        return "library", ""
    return "", lane.graphs.refused.get(batch, "")


def _load(subject: _Subject, session: CheckedSession, batch: int, streams: int, *, graphs: bool) -> GpuLoad:
    """``streams`` threads that run batch after batch for the measuring time. What they need is made before: contexts, graphs,
    and a GPU that is no longer at rest."""
    engine = _engine(session)

    def warm_up(number: int) -> None:
        with engine.lane() as lane:  # for as long as the others have theirs, so that each is another
            _warm_up(lane, subject.batches(batch, number), subject.warm_seconds)

    def work(number: int, stop: float) -> int:
        feeds = subject.batches(batch, number * MIN_CALLS)
        done = 0
        while done < MIN_CALLS or time.perf_counter() < stop:
            engine.run(next(feeds))
            done += 1
        return done

    with ThreadPoolExecutor(streams) as threads:
        list(threads.map(warm_up, range(streams)))
    with ThreadPoolExecutor(streams) as threads, GpuWatch(subject.device) as watch:
        start = time.perf_counter()
        running = [threads.submit(work, number, start + subject.seconds) for number in range(streams)]
        calls = sum(future.result() for future in running)
        seconds = time.perf_counter() - start
    seen, images = watch.result(), calls * batch
    reasons = doubts(seen)
    if len(engine.pool.lanes) < streams:
        reasons += (f"only {len(engine.pool.lanes)} contexts: {engine.pool.refused or 'the threads never met'}",)
    return GpuLoad(
        batch=batch,
        streams=streams,
        graph=graphs,
        images=images,
        seconds=seconds,
        images_per_second=images / seconds,
        joules_per_image=None if seen.joules is None else seen.joules / images,
        valid=not reasons,
        reasons=reasons,
        seen=seen,
    )


def doubts(seen: GpuSamples) -> tuple[str, ...]:
    """Why a measurement may be of something else than the engine: a GPU that was slowed down, shared, or not watched."""
    reasons = []
    if seen.missing:
        reasons.append(f"the GPU was not watched: {seen.missing}")
    if seen.throttled:
        reasons.append(f"the GPU was slowed down: {', '.join(seen.throttled)}")
    if seen.other_processes:
        reasons.append(f"{seen.other_processes} other process(es) on the GPU")
    return tuple(reasons)


def bench_gpu(
    bundle: Bundle,
    plan: BenchPlan = BenchPlan(),
    *,
    streams: Sequence[int] = (1, 2, 4),
    trtexec: bool = False,
    on_progress: OnProgress = silent,
) -> GpuReport:
    """Measure one engine: the one that is named, else the best of the named backends, else the best there is.

    Args:
        trtexec: NVIDIA's tool has to be here. Without it, it measures the same engine where it is on PATH.

    Raises:
        UsageError: several variants.
        IncompatibleError: no engine of the bundle runs here; no ``trtexec`` where that was asked for.
    """
    if len(plan.variants) > 1:
        raise UsageError(
            f"--variant names {len(plan.variants)} engines, and one at a time is taken apart", "give one --variant"
        )
    where = plan.device or Device("cuda")
    chosen = _choose(bundle, plan.backends or [engine.name for engine in ENGINES], plan.variants, where)
    tool = find_trtexec(chosen, asked=trtexec)
    pool = measuring_pool(bundle, plan.data, POOL, plan.data_dir)
    report = measure_gpu(
        bundle,
        chosen,
        pool.images,
        device=where,
        batches=plan.batches,
        streams=streams,
        seconds=plan.seconds,
        on_progress=on_progress,
    )
    if tool is None:
        return report
    on_progress(None, "measuring by trtexec")
    rows = trtexec_rows(tool, bundle, chosen, plan.batches, device=where, seconds=plan.seconds)
    return msgspec.structs.replace(report, trtexec=rows)


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
