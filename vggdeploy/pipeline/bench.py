"""Measure a bundle's variants beside each other, and keep what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from vggdeploy.bench.compare import measure, open_checked
from vggdeploy.bundle import Bundle, Measurement, Variant, update_bundle
from vggdeploy.bundle.store import now
from vggdeploy.errors import IncompatibleError
from vggdeploy.files import check_writable
from vggdeploy.machine import fingerprint, machine
from vggdeploy.optional import require
from vggdeploy.pipeline.prove import tool_versions
from vggdeploy.pipeline.samples import Samples, measuring_pool
from vggdeploy.records import BenchReport, BenchRow, ScenarioRow
from vggdeploy.runtime import backend_for, runnable
from vggdeploy.runtime.registry import default_device
from vggdeploy.selection import select
from vggdeploy.types import Device

POOL = 512  # distinct images to walk through


def bench_bundle(
    bundle: Bundle,
    *,
    backends: Sequence[str] = (),
    variants: Sequence[str] = (),
    batches: Sequence[int] = (1, 8),
    device: Device | None = None,
    seconds: float = 2.0,
    rounds: int = 7,
    threads: int | None = None,
    data: str = "",
    data_dir: Path | None = None,
    record: bool = False,
    scenarios: Sequence[str] = (),
    target_qps: float | None = None,
    latency_bound_ms: float | None = None,
    on_start: Callable[[int], None] = lambda steps: None,
    on_progress: Callable[[int], None] = lambda steps: None,
) -> BenchReport:
    """Measure variants interleaved in one run. The first one is the baseline of the ratios.

    With ``scenarios``, MLPerf LoadGen issues the load instead, for ``seconds`` a variant, scenario and batch size.

    Args:
        backends: take every variant of these backends. Default: every variant that runs here.
        variants: take these variants.
        record: write the medians to the manifest, where ``backend="auto"`` finds them.
        scenarios: of ``single_stream``, ``multi_stream``, ``server``, ``offline``.
        target_qps: queries a second that ``server`` gets, Poisson-distributed; ``latency_bound_ms``: its p99 bound.

    Raises:
        IncompatibleError: something asked for cannot run here.
    """
    if record:
        check_writable(bundle.root)
    chosen = _choose(bundle, backends, variants, device)
    pool = measuring_pool(bundle, data, POOL, data_dir)
    rows: Sequence[BenchRow] = ()
    loads: list[ScenarioRow] = []
    if scenarios:
        require("mlperf_loadgen", to="run LoadGen's scenarios", extra="bench")
        on_start(len(chosen) * len(batches) * len(scenarios))
        for scenario in scenarios:
            for batch in batches if scenario in ("server", "offline") else batches[:1]:
                load = (scenario, seconds, batch, target_qps, latency_bound_ms)
                loads += [_scenario(bundle, v, d, pool, load, threads, on_progress) for v, d in chosen]
    else:
        on_start(len(chosen) * len(batches) * rounds)
        rows = measure(
            bundle,
            chosen,
            pool.images,
            batches=batches,
            seconds=seconds,
            rounds=rounds,
            threads=threads,
            on_progress=on_progress,
        )
    report = BenchReport(
        bundle=str(bundle.root),
        created=now(),
        machine=machine(),
        threads=threads or machine().cores,
        data=pool.data,
        baseline=chosen[0][0].name,
        rows=tuple(rows),
        scenarios=tuple(loads),
        tools=tool_versions(),
    )
    if record:
        _record(bundle, report)
    return report


def _scenario(
    bundle: Bundle,
    variant: Variant,
    device: Device,
    pool: Samples,
    load: tuple[str, float, int, float | None, float | None],
    threads: int | None,
    on_progress: Callable[[int], None],
) -> ScenarioRow:
    """One variant under one load, with the golden pair checked first."""
    from vggdeploy.bench.scenarios import Load, run_scenario

    scenario, seconds, batch, target_qps, bound = load
    wanted = Load(scenario, seconds=seconds, batch=batch, target_qps=target_qps, latency_bound_ms=bound)
    with ExitStack() as stack:
        opened = open_checked(stack, bundle, variant, device, batch, threads)
        row = run_scenario(
            opened.session,
            pool.images,
            wanted,
            variant=variant.name,
            backend=backend_for(variant).name,
            device=str(device),
            verdict=opened.verdict,
            sha256=bundle.sha256(variant.path),
        )
    on_progress(1)
    reasons = (*opened.reasons, *row.reasons)
    return msgspec.structs.replace(row, reasons=reasons, valid=not reasons)


def _choose(
    bundle: Bundle, backends: Sequence[str], variants: Sequence[str], device: Device | None
) -> list[tuple[Variant, Device]]:
    found: list[Variant] = []
    for name in variants:
        found += select(bundle, variant=name, device=device)
    for name in backends:
        found += select(bundle, backend=name, device=device)
    if not variants and not backends:
        found = [v for v in bundle.manifest.variants if runnable(v, device).runs]
    if not found:
        raise IncompatibleError(f"no variant of {bundle.root} runs here", "run: vggdeploy doctor")
    distinct = {v.name: v for v in found}
    return [(v, device or default_device(backend_for(v))) for v in distinct.values()]


def _record(bundle: Bundle, report: BenchReport) -> None:
    """Put the medians of valid rows into the manifest, in place of older ones from the same kind of machine."""
    here = fingerprint()
    changed = []
    for name in {row.variant for row in report.rows}:
        variant = bundle.manifest.variant(name)
        new = tuple(
            Measurement(machine=here, backend=r.backend, batch=r.batch, threads=report.threads, p50_ms=r.p50_ms)
            for r in report.rows
            if r.variant == name and r.valid
        )
        if new:
            kept = tuple(m for m in variant.measured if m.machine != here)
            changed.append(msgspec.structs.replace(variant, measured=(*kept, *new)))
    with update_bundle(bundle) as draft:
        draft.manifest = bundle.manifest.with_variants(*changed)
