"""Measure a server that is asked over HTTP or gRPC: callers, rates, and the highest rate that keeps a bound."""

from __future__ import annotations

import http.client
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vggdeploy.bench.crew import Worker, shared
from vggdeploy.bench.interference import conditions
from vggdeploy.bench.loadgen.rates import Search, no_rate
from vggdeploy.bench.loadgen.scenarios import Issued, Load
from vggdeploy.bench.messages import ServerLoadReply, ServerLoadRequest, StartRequest, SurveyReply, SurveyRequest
from vggdeploy.bench.remote.clients import Client, chosen_model, connect
from vggdeploy.bench.remote.questions import no_answer
from vggdeploy.bench.remote.rows import Case, server_row, server_times
from vggdeploy.bench.remote.target import Array, ServedModel, Target
from vggdeploy.bundle import Bundle
from vggdeploy.bundle.store import now
from vggdeploy.errors import IncompatibleError, UsageError, VggdeployError, counted
from vggdeploy.parity import OutputStats, judge
from vggdeploy.records import CEILINGS, BenchReport, OutputParity, ScenarioRow
from vggdeploy.records.bench import ServerAbout, ServerTimes
from vggdeploy.system.machine import machine
from vggdeploy.system.optional import require
from vggdeploy.types import OnProgress, Precision, Steps, Verdict, silent
from vggdeploy.verify.prove import tool_versions
from vggdeploy.verify.samples import measuring_pool

POOL = 128  # images, beside the golden ones
_POOL_BYTES = 256 * 2**20
_SEED = 20_261_130
_STRICTEST = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.FP8, Precision.INT8)


@dataclass(frozen=True)
class ServerPlan:
    """What a server is asked.

    Attributes:
        batch: images in a request.
        callers: numbers of callers that each wait for their answer.
        rates: requests a second that arrive at random moments (Poisson).
        latency_bound_ms: what the p99 of a rate may be.
        find_qps: search the highest rate that keeps the bound.
        seconds: for each of them.
        connections: at a time, at most, where requests arrive.
        variant: whose precision's limits judge the answers; default: the strictest of the bundle's that they keep.
        data, data_dir: as in `vggdeploy.bench.run.BenchPlan`.
    """

    batch: int = 1
    callers: Sequence[int] = ()
    rates: Sequence[float] = ()
    latency_bound_ms: float | None = None
    find_qps: bool = False
    seconds: float = 5.0
    connections: int = 64
    variant: str = ""
    data: str = ""
    data_dir: Path | None = None

    def loads(self, timeout: float) -> list[Load | int]:
        """Numbers of callers, then LoadGen's loads. Without a bound a request may take as long as the client waits for it."""
        if self.latency_bound_ms is not None and not 0 < self.latency_bound_ms < math.inf:
            raise UsageError(f"--latency-bound is {self.latency_bound_ms:g}", "give milliseconds above 0")
        if self.find_qps and self.latency_bound_ms is None:
            raise UsageError("--find-qps needs a bound", "give --latency-bound MS")
        bound = timeout * 1e3 if self.latency_bound_ms is None else self.latency_bound_ms
        common = partial(Load, "server", seconds=self.seconds, batch=1, latency_bound_ms=bound)
        loads: list[Load | int] = [*self.callers, *(common(target_qps=rate) for rate in self.rates)]
        return [*loads, common(find_qps=True)] if self.find_qps else loads


def bench_server(
    target: Target, bundle: Bundle | None, plan: ServerPlan, *, on_progress: OnProgress = silent
) -> BenchReport:
    """Ask a server under each load. With a bundle, its golden pair is asked before and after, and decides the verdict;
    without one nothing is proven, and only answers that change under load are a failure.

    Raises:
        UsageError: no load, or a model that the server does not have.
        IncompatibleError: the server's model takes other inputs than the bundle's.
        VggdeployError: the server cannot be reached, or does not answer.
    """
    loads = plan.loads(target.timeout)
    if not loads:
        raise UsageError("--url without a load", "give --concurrency 1,2,4, --rates 50,100 or --find-qps")
    if any(isinstance(load, Load) for load in loads):
        require("mlperf_loadgen", to="let requests arrive at a rate", extra="bench")
    if target.grpc:
        require("grpc", to="ask a server over gRPC", extra="grpc")
        require("google.protobuf", to="ask a server over gRPC", extra="grpc")
    with _asking(target) as (client, found, about):
        images, data = _images(about, bundle, plan)
        golden = _Golden(bundle, plan, client, about)
        golden.ask()
        tolerance = golden.tolerance
        name = f"{about.name} over {'gRPC' if found.grpc else 'HTTP'}"
        steps = Steps(on_progress, len(loads), "measuring")
        rows = []
        with shared(images) as descriptor, _worker(descriptor) as worker:
            wanted = SurveyRequest(target=found, batch=plan.batch, tolerance=tolerance)
            if bundle is not None:
                wanted = msgspec.structs.replace(wanted, bundle=str(bundle.root), variants=golden.candidates)
            survey = worker.ask(wanted, SurveyReply)
            golden.held_against(survey)
            for load in loads:
                case = Case(name, about, found, plan.batch, plan.latency_bound_ms, min(len(images), POOL))
                rows.append(_row(worker, client, case, load, plan, on_progress))
                steps.advance()
        golden.ask()
        here = machine()
        return BenchReport(
            bundle=found.url if bundle is None else str(bundle.root),
            created=now(),
            machine=here,
            threads=here.cores,
            data=data,
            baseline=name,
            rows=(),
            scenarios=tuple(golden.judged(row) for row in rows),
            tools=tool_versions(),
            conditions=conditions(),
            server=ServerAbout(
                url=found.url, protocol="grpc" if found.grpc else "http", model=about.name, server=about.server,
                platform=about.platform, same_machine=found.on_this_machine, judged_as=golden.precision,
                held_against=survey.local,
            ),
        )  # fmt: skip


@contextmanager
def _asking(target: Target) -> Iterator[tuple[Client, Target, ServedModel]]:
    client = connect(target)
    try:
        try:
            target = replace(target, model=chosen_model(client, target.model))
            client.close()
            client = connect(target)
            about = client.model()
        except (OSError, http.client.HTTPException) as error:
            raise no_answer(target, error) from error
        yield client, target, about
    finally:
        client.close()


@contextmanager
def _worker(descriptor: int) -> Iterator[Worker]:
    """The process that asks. After an error or Ctrl-C it is killed: LoadGen would go on to its end."""
    worker = Worker(StartRequest(pool=f"/proc/self/fd/{descriptor}"), descriptor)
    try:
        yield worker
    except BaseException:
        worker.close(kill=True)
        raise
    worker.close()


def _images(about: ServedModel, bundle: Bundle | None, plan: ServerPlan) -> tuple[Array, str]:
    """What is asked under load, and its name: the bundle's test images, or noise where there is no bundle."""
    if bundle is None:
        count = max(plan.batch, min(POOL, _POOL_BYTES // max(1, int(np.prod(about.input.item)) * 4)))
        random = np.random.default_rng(_SEED)
        shape = (count, *about.input.item)
        if about.input.datatype == "UINT8":
            return random.integers(0, 256, shape, np.uint8), f"noise ({counted(count, 'image')})"
        return random.standard_normal(shape, np.float32), f"noise ({counted(count, 'image')})"
    ours = bundle.manifest.input
    datatype = {"uint8": "UINT8", "float32": "FP32"}[ours.dtype]
    if (about.input.name, about.input.datatype, about.input.item) != (ours.name, datatype, ours.item_shape):
        raise IncompatibleError(
            f"the server's {about.name[:80]} takes {about.input}, and {bundle.root} {ours}",
            "give the bundle that is served there, or leave it out",
        )
    missing = {output.name for output in bundle.manifest.outputs} - {output.name for output in about.outputs}
    if missing:
        raise IncompatibleError(
            f"the server's {about.name[:80]} has no output {', '.join(sorted(missing))}",
            "give the bundle that is served",
        )
    pool = measuring_pool(bundle, plan.data, POOL, plan.data_dir)
    return pool.images, pool.data


class _Golden:
    """The golden pair, asked over the network: what its answers say of the server's."""

    def __init__(self, bundle: Bundle | None, plan: ServerPlan, client: Client, about: ServedModel) -> None:
        self._bundle, self._plan, self._client, self._about = bundle, plan, client, about
        self._limits = {p: CEILINGS[p] for p in _STRICTEST} if bundle is None else _limits(bundle, plan.variant)
        self.precision: Precision | None = None
        self._reasons: tuple[str, ...] = ()
        self._outputs: tuple[OutputParity, ...] = ()

    @property
    def tolerance(self) -> float:
        """What answers may differ under load, relative L2; without a bundle nobody says which precision is served."""
        loosest = max(limits.relative_l2 for limits in self._limits.values())
        return self._limits[self.precision].relative_l2 if self.precision else loosest

    @property
    def candidates(self) -> tuple[str, ...]:
        """The bundle's variants that answers may be held against: those of the precision by which they are judged first, then
        stricter ones. None where the golden pair is answered wrong, which says more."""
        if self._bundle is None or self.precision is None:
            return ()
        has, limits = self._bundle.manifest.variants, self._bundle.manifest.limits
        bound = limits(self.precision).relative_l2
        kept = [v for v in has if limits(v.precision).relative_l2 <= bound and v.verdict is not Verdict.FAIL]
        return tuple(v.name for v in sorted(kept, key=lambda v: (v.precision != self.precision, v.name)))

    def held_against(self, survey: SurveyReply) -> None:
        """The answers to the other images without load, of which some may be others than the bundle's own."""
        if survey.foreign:
            self._reasons = (
                f"wrong output: {survey.foreign:,} of {counted(survey.requests, 'request')} are answered otherwise than by "
                f"{survey.local} here, though the golden pair is answered right",
                *self._reasons,
            )

    def ask(self) -> None:
        """Ask it, and judge it; what was wrong once stays wrong."""
        if self._bundle is None or self._reasons:
            return
        inputs, expected = self._bundle.golden()
        images = inputs[self._bundle.manifest.input.name]
        stats = {name: OutputStats(name) for name in expected}
        for start in range(0, len(images), self._plan.batch):
            part = images[start : start + self._plan.batch]
            try:
                found = self._client.outputs(self._client.infer(self._client.prepare(self._about, part)))
            except (OSError, http.client.HTTPException) as error:
                raise VggdeployError(f"the server did not answer the golden pair: {error}", "see its log") from error
            for name, reference in expected.items():
                rows = np.asarray(reference[start : start + len(part)])
                if not len(rows):
                    continue
                if name not in found or found[name].shape[1:] != rows.shape[1:] or len(found[name]) < len(rows):
                    raise VggdeployError(f"the server's answer has no {name} of the golden pair's shape", "see its log")
                stats[name].update(rows, found[name][: len(rows)])
        self._outputs = tuple(one.result() for one in stats.values())
        self._judge()

    def _judge(self) -> None:
        told = {
            precision: judge(self._outputs, None, limits, golden=True) for precision, limits in self._limits.items()
        }
        kept = [precision for precision, found in told.items() if found.numerical is not Verdict.FAIL]
        self.precision = kept[0] if kept else None
        if kept:
            self._limits = {precision: self._limits[precision] for precision in kept}
        else:
            loosest, found = list(told.items())[-1]
            self._reasons = tuple(f"wrong output, by the limits of {loosest}: {reason}" for reason in found.reasons)

    def judged(self, row: ScenarioRow) -> ScenarioRow:
        """The row with the verdict of the golden pair; answers that were wrong under load fail it anyway."""
        if row.answers is not None:
            answers = msgspec.structs.replace(row.answers, outputs=self._outputs)
            row = msgspec.structs.replace(row, answers=answers)
        if self._reasons:
            reasons = (*self._reasons, *row.reasons)
            return msgspec.structs.replace(row, verdict=Verdict.FAIL, reasons=reasons, valid=False)
        proven = Verdict.UNPROVEN if self._bundle is None else Verdict.PASS
        return row if row.verdict is Verdict.FAIL else msgspec.structs.replace(row, verdict=proven)


def _limits(bundle: Bundle, variant: str) -> dict[Precision, Any]:
    """Limits by precision, the strictest first: of the named variant, or of each that the bundle has."""
    manifest = bundle.manifest
    has = {manifest.variant(variant).precision} if variant else {v.precision for v in manifest.variants}
    rest = (p for p in Precision if p not in _STRICTEST)
    found = {p: manifest.limits(p) for p in (*_STRICTEST, *rest) if p in has}
    return dict(sorted(found.items(), key=lambda each: each[1].relative_l2))


def _row(
    worker: Worker, client: Client, case: Case, load: Load | int, plan: ServerPlan, on_progress: OnProgress
) -> ScenarioRow:
    if isinstance(load, int):
        return server_row(case, None, load, *_answered(worker, client, load, plan.seconds))
    last: list[tuple[ServerLoadReply, ServerTimes | None]] = []

    def issue(wanted: Load) -> Issued:
        last.append(_answered(worker, client, plan.connections, load=wanted))
        return last[-1][0].issued

    if not load.find_qps:
        issue(load)
        return server_row(case, load, plan.connections, *last[-1])
    probe = worker.ask(ServerLoadRequest(connections=1, seconds=min(1.0, plan.seconds)), ServerLoadReply)
    search = Search(issue, load, probe.issued.samples_per_second / 2)
    on_progress(None, search.plan())
    searched, found, issued = search.run()
    row = server_row(case, found, plan.connections, *next(each for each in reversed(last) if each[0].issued is issued))
    reasons = row.reasons if searched.qps is not None else (no_rate(searched), *row.reasons)
    return msgspec.structs.replace(row, search=searched, reasons=reasons, valid=not reasons)


def _answered(
    worker: Worker, client: Client, connections: int, seconds: float = 0.0, load: Load | None = None
) -> tuple[ServerLoadReply, ServerTimes | None]:
    """What came back under one load, and what the server says of that time."""
    before = client.statistics()
    reply = worker.ask(ServerLoadRequest(connections=connections, seconds=seconds, load=load), ServerLoadReply)
    return reply, server_times(before, client.statistics())
