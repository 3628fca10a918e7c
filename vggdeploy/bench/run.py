"""Measure a bundle's variants beside each other, and keep what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vggdeploy.bench.candidates import Entry, beside_engines, bundle_names, check_same_input
from vggdeploy.bench.interference import conditions
from vggdeploy.bench.roof import measure_roofs, share_of_roof
from vggdeploy.bench.rounds import DEFAULT_ROUNDS, MORE, Comparison, Plan, measure
from vggdeploy.bench.rows import sentences
from vggdeploy.bundle import Bundle, Measurement, Variant, update_bundle
from vggdeploy.bundle.store import now
from vggdeploy.engine.selection import select
from vggdeploy.errors import IncompatibleError, unknown_name
from vggdeploy.model.outputs import macs_of
from vggdeploy.records import BenchReport, BenchRow, CpuRoof, ScenarioRow
from vggdeploy.runtime import backend_for, runnable
from vggdeploy.runtime.registry import default_device
from vggdeploy.system.files import check_writable
from vggdeploy.system.machine import fingerprint, machine
from vggdeploy.system.optional import require
from vggdeploy.types import Device, OnProgress, silent
from vggdeploy.verify.prove import tool_versions
from vggdeploy.verify.samples import measuring_pool

if TYPE_CHECKING:
    from vggdeploy.bench.loadgen.scenarios import Load

POOL = 512  # distinct images to walk through


@dataclass(frozen=True)
class BenchPlan:
    """Which variants are measured, on which inputs, and for how long.

    Attributes:
        backends: take every variant of these backends. Default: every variant that runs here.
        variants: take these variants.
        device: where they run; default each backend's first, and beside an engine its GPU for all that can use it.
        batches: batch sizes.
        seconds: measuring time of a variant and batch size.
        data: the data set of the inputs; default the one that the model was trained on, else the golden inputs.
        data_dir: where the data set is; default as `vggdeploy.data.loaders.open_split`.
    """

    backends: Sequence[str] = ()
    variants: Sequence[str] = ()
    device: Device | None = None
    batches: Sequence[int] = (1, 8)
    seconds: float = 2.0
    data: str = ""
    data_dir: Path | None = None


@dataclass(frozen=True)
class Rounds:
    """The variants take turns and are compared by ratio.

    Attributes:
        count: how often they take turns.
        processes: how many times all begin again in new processes, each with a like share of the rounds.
        pin: CPUs to run on, and nowhere else.
        percentile: the one that has to be believable: a row with too few calls for it is invalid.
        roof: measure the fastest matrix product of each precision on these CPUs, and what share of it each row reaches.
    """

    count: int = DEFAULT_ROUNDS
    pin: Sequence[int] = ()
    percentile: int = 90
    roof: bool = False
    processes: int | None = None


@dataclass(frozen=True)
class Scenarios:
    """MLPerf LoadGen issues the load.

    Attributes:
        names: of ``single_stream``, ``multi_stream``, ``server``, ``offline``.
        target_qps: queries a second that ``server`` gets, Poisson-distributed.
        latency_bound_ms: the bound of the p99 of ``server``.
        find_qps: search the highest rate of ``server`` that keeps the bound, from ``target_qps`` on where it is given.
    """

    names: Sequence[str]
    target_qps: float | None = None
    latency_bound_ms: float | None = None
    find_qps: bool = False

    def loads(self, plan: BenchPlan) -> list[Load]:
        """What is issued to each variant; only ``server`` and ``offline`` take batches of several sizes."""
        from vggdeploy.bench.loadgen.scenarios import Load

        return [
            Load(
                name,
                seconds=plan.seconds,
                batch=batch,
                target_qps=self.target_qps,
                latency_bound_ms=self.latency_bound_ms,
                find_qps=self.find_qps,
            )
            for name in self.names
            for batch in (plan.batches if name in ("server", "offline") else plan.batches[:1])
        ]


def bench_bundle(
    *bundles: Bundle,
    plan: BenchPlan = BenchPlan(),
    method: Rounds | Scenarios = Rounds(),
    threads: int | None = None,
    record: bool = False,
    on_progress: OnProgress = silent,
) -> BenchReport:
    """Measure variants interleaved in one run, of one bundle or of several. The first one is the baseline of the ratios.

    Args:
        method: how they are measured: in rounds beside each other, or one after the other under LoadGen's load.
        threads: CPU threads of each session; default every core that this process may use.
        record: write the medians to the manifest, where ``backend="auto"`` finds them.
        on_progress: called with the share that is measured; without one before something that takes long.

    Raises:
        UsageError: bundles that do not take the same input.
        IncompatibleError: something asked for cannot run here.
    """
    if record:
        for each in bundles:
            check_writable(each.root)
    chosen = _choose(bundles, plan)
    pool = measuring_pool(bundles[0], plan.data, POOL, plan.data_dir)
    comparison: Comparison | None = None
    loads: list[ScenarioRow] = []
    roofs: tuple[CpuRoof, ...] = ()
    if isinstance(method, Scenarios):
        require("mlperf_loadgen", to="run LoadGen's scenarios", extra="bench")
        from vggdeploy.bench.loadgen.run import run_loads

        wanted = method.loads(plan)
        loads = run_loads(chosen, pool.images, wanted, threads=threads, on_progress=on_progress)
    else:
        turns = Plan(
            plan.batches, plan.seconds, method.count, threads, method.pin, method.percentile, method.processes, MORE
        )
        comparison = measure(chosen, pool.images, turns, on_progress=on_progress)
        if method.roof:
            on_progress(None, "measuring the roof of the CPUs")
            roofs = measure_roofs(comparison.threads)
    rows = comparison.rows if comparison else ()
    if roofs:
        rows = tuple(_under_roof(row, entry, roofs) for row in rows for entry in chosen if entry.name == row.variant)
    report = BenchReport(
        bundle=str(bundles[0].root),
        bundles=tuple(str(each.root) for each in bundles) if len(bundles) > 1 else (),
        created=now(),
        machine=machine(),
        threads=comparison.threads if comparison else threads or machine().cores,
        data=pool.data,
        baseline=chosen[0].name,
        rows=rows,
        scenarios=tuple(loads),
        tools=tool_versions(),
        summary=sentences(rows),
        percentile=method.percentile if isinstance(method, Rounds) else Rounds().percentile,
        fresh=comparison.fresh if comparison else (),
        conditions=comparison.conditions if comparison else conditions(),
        harness_cpu_share=comparison.harness_cpu_share if comparison else None,
        roofs=roofs,
    )
    if record:
        for each in bundles:
            _record(each, {e.name: e.variant for e in chosen if e.bundle is each}, report)
    return report


def _under_roof(row: BenchRow, entry: Entry, roofs: Sequence[CpuRoof]) -> BenchRow:
    """The row with the share of the roof that it reaches, where it ran on the CPUs."""
    if entry.device.kind != "cpu":
        return row
    manifest = entry.bundle.manifest
    reached = 2 * macs_of(manifest.spec, [o.name for o in manifest.outputs]) * row.images_per_second / 1e12
    share = share_of_roof(reached, entry.variant.precision, roofs)
    unchecked = ("roof: it was measured too low, or this precision has none",) if roofs and share is None else ()
    return msgspec.structs.replace(row, tera_ops=reached, roof_share=share, not_checked=(*row.not_checked, *unchecked))


def _choose(bundles: Sequence[Bundle], plan: BenchPlan) -> list[Entry]:
    """What is asked for, bundle by bundle. Of several, a variant is named as it is (then of every bundle that has it), or
    as ``bundle:variant``.
    """
    check_same_input(bundles)
    backends, variants, device = plan.backends, plan.variants, plan.device
    entries: list[Entry] = []
    unknown = set(variants)
    for bundle, short in zip(bundles, bundle_names(bundles), strict=True):
        called = {
            v.name: v.name if len(bundles) == 1 else f"{short}:{v.name}" for v in bundle.manifest.variants
        }  # variant → row
        wanted = [v for v, row in called.items() if v in variants or row in variants]
        unknown -= {*wanted, *(called[v] for v in wanted)}
        entries += [
            Entry(bundle, variant, device or default_device(backend_for(variant)), called[variant.name])
            for variant in _of_bundle(bundle, backends, wanted, device, everything=not variants and not backends)
        ]
    for name in sorted(unknown):
        raise unknown_name("variant", name, {v.name for b in bundles for v in b.manifest.variants})
    if not entries:
        raise IncompatibleError(f"no variant of {bundles[0].root} runs here", "run: vggdeploy doctor")
    return beside_engines(entries) if device is None else entries


def _of_bundle(
    bundle: Bundle, backends: Sequence[str], variants: Sequence[str], device: Device | None, *, everything: bool
) -> Iterable[Variant]:
    if everything:
        return [v for v in bundle.manifest.variants if runnable(v, device).runs]
    chosen: list[Variant] = []
    for name in variants:
        chosen += select(bundle, variant=name, device=device)
    for name in backends:
        chosen += select(bundle, backend=name, device=device)
    return {v.name: v for v in chosen}.values()


def _record(bundle: Bundle, measured: Mapping[str, Variant], report: BenchReport) -> None:
    """Put the medians of valid rows into the manifest, in place of older ones from the same kind of machine.

    ``measured``: the name of a row → the bundle's variant.
    """
    here = fingerprint()
    changed = []
    for name, variant in measured.items():
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
