"""``vggdeploy bench``: latency and throughput of variants, measured beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy.cli import render
from vggdeploy.cli.options import BundlePaths, DataDir, Json, Modes, Rebuild, Threads, check_modes
from vggdeploy.cli.render import escape

if TYPE_CHECKING:
    from vggdeploy.bench.run import BenchPlan
    from vggdeploy.bundle import Bundle
    from vggdeploy.records import BenchReport
    from vggdeploy.records.gpu import GpuReport

MODES: Modes = {
    **dict.fromkeys(
        ("--rounds", "--processes", "--pin", "--percentile", "--roof"),
        ("without --scenario", "without --gpu-detail", "without --profile-layers", "without --url"),
    ),
    **dict.fromkeys(("--latency-bound", "--find-qps"), ("--scenario server", "--url")),
    "--target-qps": ("--scenario server",),
    **dict.fromkeys(("--scenario", "--record"), ("without --gpu-detail", "without --profile-layers", "without --url")),
    "--threads": ("without --gpu-detail", "without --url"),
    "--fail-if-slower": ("without --scenario", "without --gpu-detail", "without --profile-layers", "without --url"),
    "--gpu-detail": ("without --profile-layers", "without --url"),
    "--require-valid": ("without --profile-layers",),
    **dict.fromkeys(("--profile-layers", "--backend", "--device", "--rebuild"), ("without --url",)),
    "--no-build": ("--backend",),
    "--trtexec": ("--gpu-detail",),
    **dict.fromkeys(("--model", "--concurrency", "--rates", "--connections", "--token-file"), ("--url",)),
}


def bench(
    context: typer.Context,
    bundles: BundlePaths = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="All variants of this backend; may be repeated. Default: all.")
    ] = None,
    variant: Annotated[list[str] | None, typer.Option(help="This variant; may be repeated.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,8",
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda or cuda:INDEX. Default: the backend's first; beside a GPU engine, its GPU."),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            "--duration", "--seconds", metavar="S", help="Measuring time in seconds, per variant and batch size."
        ),
    ] = 2.0,
    rounds: Annotated[
        int, typer.Option(help="How often the variants take turns; twice as often where a row is unstable.")
    ] = 12,
    processes: Annotated[
        int | None,
        typer.Option(
            help="How many times all begin again in new processes, each with a share of the rounds. Default: 4, or --rounds."
        ),
    ] = None,
    scenario: Annotated[
        str, typer.Option(help="MLPerf LoadGen's: single_stream, multi_stream, server, offline; comma-separated.")
    ] = "",
    target_qps: Annotated[float | None, typer.Option(help="Queries a second of the server scenario.")] = None,
    latency_bound: Annotated[
        float | None, typer.Option(metavar="MS", help="p99 bound of the server scenario in ms.")
    ] = None,
    find_qps: Annotated[
        bool,
        typer.Option(
            "--find-qps", help="Find the highest rate of the server scenario whose p99 stays under --latency-bound."
        ),
    ] = False,
    threads: Threads = None,
    pin: Annotated[
        str, typer.Option(metavar="CPUS", help="Run on these CPUs only, for example 0-3,8. Default: all.")
    ] = "",
    percentile: Annotated[
        int, typer.Option(help="The one you rely on, 50, 90 or 99: too few calls for it are invalid.")
    ] = 90,
    data: Annotated[str, typer.Option(help="Data set for the inputs. Default: the one trained on.")] = "",
    data_dir: DataDir = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write the medians to the manifest: 'auto' then picks the fastest here.")
    ] = False,
    roof: Annotated[
        bool,
        typer.Option(
            "--roof", help="Also measure the CPUs' fastest matrix product, and the share of it that each reaches."
        ),
    ] = False,
    gpu_detail: Annotated[
        bool,
        typer.Option(
            "--gpu-detail",
            help="Measure one TensorRT engine in detail: copies, compute, graphs, streams, energy, the roof.",
        ),
    ] = False,
    profile_layers: Annotated[
        bool,
        typer.Option(
            "--profile-layers",
            help="Time every kernel, and name the layers that it computes. Slower than a plain run, so nothing is compared.",
        ),
    ] = False,
    trtexec: Annotated[
        bool,
        typer.Option(
            "--trtexec",
            help="With --gpu-detail: NVIDIA's trtexec has to be here. On PATH, it measures the same engine anyway.",
        ),
    ] = False,
    fail_if_slower: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help="With two bundles, old and new: exit with 4 when the new one is slower by more, or that cannot be told.",
        ),
    ] = None,
    require_valid: Annotated[
        bool, typer.Option("--require-valid", help="Exit with 4 when a measurement is not valid.")
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Ask this server instead, http://HOST:PORT or grpc://HOST:PORT; a BUNDLE then checks its answers.",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Which of the server's models. Default: the only one.")] = "",
    concurrency: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Callers that each wait for their answer: 1,2,4 or FIRST:LAST:STEP.")
    ] = "",
    rates: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Requests a second that arrive at random moments: 50,100.")
    ] = "",
    connections: Annotated[int, typer.Option(help="Of --rates and --find-qps, at a time at most.")] = 64,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token to send. Default: $VGGDEPLOY_TOKEN, or none.")
    ] = None,
    no_build: Annotated[
        bool,
        typer.Option(
            "--no-build", help="Where --backend names a TensorRT and no engine fits the GPU: an error, and no build."
        ),
    ] = False,
    rebuild: Rebuild = False,
    json: Json = False,
) -> int:
    """Measure latency (p50, p90, p99) and images/s, interleaved, on distinct real inputs."""
    from msgspec.structs import replace

    from vggdeploy.bench.candidates import bundle_names
    from vggdeploy.bench.compare import compare_bundles
    from vggdeploy.bench.run import BenchPlan, Rounds, Scenarios, bench_bundle
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli.compare import exit_code, parse_limit
    from vggdeploy.cli.options import cpu_list, fitted, rebuilt, split_names, split_numbers, typed, with_command
    from vggdeploy.cli.profile import run_profile
    from vggdeploy.errors import UsageError
    from vggdeploy.types import Device

    check_modes(context, MODES)
    if not 0 < seconds < inf:
        raise UsageError(f"--duration is {seconds:g} seconds", "give a time above 0")
    if url is not None:
        from vggdeploy.cli.bench_url import Asked, ask_server

        asked = Asked(
            bundles=bundles or (), url=url, model=model, concurrency=concurrency, rates=rates, connections=connections,
            token_file=token_file, batch=batch if typed(context, "batch") else "1", seconds=seconds, find_qps=find_qps,
            latency_bound=latency_bound, variants=variant or [], data=data, data_dir=data_dir,
        )  # fmt: skip
        return finished(*ask_server(asked), json=json, require_valid=require_valid)
    limit = None if fail_if_slower is None else parse_limit(fail_if_slower)
    if limit is not None and len(measured(bundles)) != 2:
        raise UsageError("--fail-if-slower holds a new bundle against an old one", "give two: vggdeploy bench OLD NEW")
    batches, cpus, scenarios = split_numbers(batch), cpu_list(pin), split_names(scenario)
    opened = [Bundle.open(path) for path in measured(bundles)]
    if rebuild:
        opened = [rebuilt(b, backends=backend or (), variants=variant or (), device=device) for b in opened]
    if not no_build:
        opened = [fitted(b, backend or (), device) for b in opened]
    plan = BenchPlan(
        backends=backend or (),
        variants=variant or (),
        device=Device.parse(device) if device else None,
        batches=batches,
        seconds=seconds,
        data=data,
        data_dir=data_dir,
    )
    if (gpu_detail or profile_layers) and len(opened) > 1:
        option = "--gpu-detail" if gpu_detail else "--profile-layers"
        raise UsageError(f"{option} looks into one bundle", "give one bundle")
    if gpu_detail:
        return run_gpu(opened[0], plan, trtexec=trtexec, json=json, require_valid=require_valid)
    if profile_layers:
        return run_profile(opened[0], plan, threads=threads, json=json)
    method: Rounds | Scenarios = Rounds(rounds, cpus, percentile, roof, processes)
    if scenarios:
        method = Scenarios(scenarios, target_qps, latency_bound, find_qps)
    # Twice a second: a step takes its time, and each look costs some of it.
    with render.progress("measuring", refresh_per_second=2) as tell:
        report = bench_bundle(*opened, plan=plan, method=method, threads=threads, record=record, on_progress=tell)
    if limit is not None:
        first, second = bundle_names(opened)
        report = replace(report, gate=compare_bundles(report, (first, second), limit=limit))
    report = with_command(report)
    code = finished(report, opened, json=json, require_valid=require_valid)
    return code if code == 3 or report.gate is None else max(code, exit_code(report.gate))


def measured(bundles: Sequence[Path] | None) -> Sequence[Path]:
    """The bundles that were given.

    Raises:
        UsageError: none.
    """
    from vggdeploy.errors import UsageError

    if not bundles:
        raise UsageError("bench measures a bundle, or a server", "vggdeploy bench BUNDLE; or vggdeploy bench --url URL")
    return bundles


def finished(report: BenchReport, bundles: Sequence[Bundle], *, json: bool, require_valid: bool) -> int:
    """Print what was measured; returns the exit code."""
    if json:
        render.emit_json(report)
    else:
        _show(report, bundles)
    return _exit_code(report, require_valid=require_valid)


def _show(report: BenchReport, bundles: Sequence[Bundle]) -> None:
    from vggdeploy.cli import tables
    from vggdeploy.cli.compare import show

    if report.scenarios:
        tables.scenario_table(report, *bundles)
        return
    tables.bench_table(report, *bundles)
    if report.gate is not None:
        show(report.gate)


def _exit_code(report: BenchReport, *, require_valid: bool) -> int:
    """3 for a wrong output, 4 for a rate that was not found or, where that is asked, for a row that does not count."""
    from vggdeploy.types import Verdict

    verdicts = {row.verdict for row in report.rows} | {row.verdict for row in report.scenarios}
    if Verdict.FAIL in verdicts:
        return 3
    if any(row.search is not None and row.search.qps is None for row in report.scenarios):
        return 4
    valid = all(row.valid for row in report.rows) and all(row.valid for row in report.scenarios)
    return 4 if require_valid and not valid else 0


def run_gpu(bundle: Bundle, plan: BenchPlan, *, trtexec: bool, json: bool, require_valid: bool) -> int:
    """Measure, print, and return the exit code."""
    from vggdeploy.bench.gpu.measure import bench_gpu

    with render.progress("measuring") as tell:
        report = bench_gpu(bundle, plan, trtexec=trtexec, on_progress=tell)
    if json:
        render.emit_json(report)
    else:
        show_gpu(report)
    return 4 if require_valid and not all(load.valid for load in report.loads) else 0


def show_gpu(report: GpuReport) -> None:
    """Where the time of a batch goes, then what several streams reach, with the reasons of what does not count."""
    from vggdeploy.report.gpu_tables import LOADS, TIMES, TRTEXEC
    from vggdeploy.report.tables import grid

    roof = f"roof {report.roof.tera_ops:,.0f} TOP/s" if report.roof else f"no roof: {report.roof_missing}"
    render.sentence(f"[bold]{escape(report.variant)}[/] on {escape(report.gpu)} ({report.capability}), {escape(roof)}")
    more = "" if report.context_bytes is None else f", {render.size_text(report.context_bytes)} a further context"
    render.sentence(f"[dim]GPU memory: {render.size_text(report.engine_bytes)}{more}[/]")
    render.table(grid(TIMES, [(t,) for t in report.times]))
    measured = [t for t in report.trtexec if not t.missing]
    if measured:
        caption = f"the same engine by trtexec of TensorRT {measured[0].version}"
        render.table(grid(TRTEXEC, [(t,) for t in measured], caption))
        for t in measured:
            render.out.print(f"  [dim]{escape(t.command)}[/]")
    render.table(grid(LOADS, [(load,) for load in report.loads], "several streams"))
    for text in dict.fromkeys(
        [f"no graph for batch {t.batch}: {t.graph_refused}" for t in report.times if t.graph_refused]
        + [f"no trtexec row for batch {t.batch}: {t.missing}" for t in report.trtexec if t.missing]
        + [f"trtexec, batch {t.batch}: {warning}" for t in report.trtexec for warning in t.warnings]
        + [reason for x in report.loads for reason in x.reasons]
    ):
        render.sentence(escape(text), "[yellow]·[/] ")
