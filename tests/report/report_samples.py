"""Results made by hand for the tests of reports: every field that a report draws, and names that would like to be code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from vggdeploy.records import (
    BenchReport,
    BenchRow,
    FlipCount,
    FreshStart,
    HostTimes,
    LayerParity,
    LayerReport,
    Machine,
    OutputParity,
    ParityRecord,
    ParityReport,
    RateSearch,
    RateTry,
    ScenarioRow,
    to_json,
)
from vggdeploy.types import Precision, Verdict

MACHINE = Machine(cpu="c", cores=2, memory_gib=8.0, features=("avx2",), system="Linux", python="3.11")
BUNDLE = "artifacts/demo/bundle"


def row(variant: str, p50: float, ratio: tuple[float, float, float], **changed: Any) -> BenchRow:
    """A proven variant with a valid run at batch 1, but for ``changed``."""
    found = BenchRow(
        variant=variant,
        backend="onnxruntime",
        device="cpu",
        batch=1,
        rounds=3,
        calls=300,
        p50_ms=p50,
        p90_ms=p50 * 1.2,
        p99_ms=p50 * 2,
        images_per_second=1000 / p50,
        load_ms=10.0,
        ratio=ratio[0],
        ratio_low=ratio[1],
        ratio_high=ratio[2],
        verdict=Verdict.PASS,
        valid=True,
        sha256=(variant.encode().hex() * 64)[:64],
        round_medians_ms=(p50, p50 * 1.01, p50 * 0.99),
        quantiles_ms=tuple(p50 * (0.9 + 0.002 * i + (0.5 if i == 100 else 0)) for i in range(101)),
    )
    return msgspec.structs.replace(found, **changed)


def bench(*rows: BenchRow, scenarios: tuple[ScenarioRow, ...] = (), **changed: Any) -> BenchReport:
    found = BenchReport(
        bundle=BUNDLE,
        created="2026-11-24T08:00:00Z",
        machine=MACHINE,
        threads=2,
        data="digits test (359 images)",
        baseline=rows[0].variant if rows else "",
        rows=rows,
        scenarios=scenarios,
        tools={"numpy": "2.3"},
        command="vggdeploy bench artifacts/demo/bundle --json",
    )
    return msgspec.structs.replace(found, **changed)


def proof(of: BenchRow, verdict: Verdict = Verdict.PASS, **changed: Any) -> ParityRecord:
    """What ``verify`` says of a bench's row."""
    ran = verdict is not Verdict.UNPROVEN
    output = OutputParity(
        output="logits", samples=359, max_abs=1e-5, mean_abs=1e-6, relative_l2=1e-6, cosine_min=1, cosine_mean=1
    )
    found = ParityRecord(
        variant=of.variant,
        backend=of.backend,
        device=of.device,
        verdict=verdict,
        reasons=() if verdict is Verdict.PASS else (f"a reason to {verdict}",),
        data="digits test (359 images)" if ran else "",
        outputs=(output,) if ran else (),
        flips=FlipCount(flips=0, samples=359, lower=0, upper=0.0083) if ran else None,
        reference_accuracy=0.98 if ran else None,
        candidate_accuracy=0.97 if ran else None,
        sha256=of.sha256 if ran else "",
    )
    return msgspec.structs.replace(found, **changed)


def parity(*records: ParityRecord, layers: tuple[LayerReport, ...] = ()) -> ParityReport:
    return ParityReport(
        bundle=BUNDLE,
        created="2026-11-24T08:01:00Z",
        variants=records,
        layers=layers,
        command="vggdeploy verify artifacts/demo/bundle --json",
    )


def layers(variant: str = "onnx-fp16", culprit: str | None = "conv2_1", finite: bool = True) -> LayerReport:
    """Seven layers, of which the third is wrong."""
    names = ("preprocess", "conv1_1", "conv2_1", "relu2_1", "pool2", "fc6", "logits")
    errors = (0.0, 1e-4, 0.3, 0.31, 0.3, 0.4, 0.5) if culprit else (0.0, 1e-4, 2e-4, 2e-4, 2e-4, 3e-4, 3e-4)
    rows = tuple(
        LayerParity(
            layer=n, relative_l2=e, max_abs=e * 3, cosine_min=1 - e / 2, largest=9.5, finite=finite or n != culprit
        )
        for n, e in zip(names, errors, strict=True)
    )
    reason = f"{culprit} has its kernels transposed" if culprit else "no layer is at fault"
    return LayerReport(variant=variant, precision=Precision.FP16, layers=rows, culprit=culprit, reason=reason)


def scenario(variant: str, qps: float, p99: float, **changed: Any) -> ScenarioRow:
    found = ScenarioRow(
        variant=variant,
        backend="onnxruntime",
        device="cpu",
        scenario="server",
        queries=1000,
        batch=8,
        target_qps=qps,
        latency_bound_ms=10.0,
        samples_per_second=qps,
        p50_ms=p99 / 2,
        p90_ms=p99 / 1.5,
        p99_ms=p99,
        estimate_ms=None,
        unique_over_same=None,
        verdict=Verdict.PASS,
        valid=p99 < 10,
        reasons=() if p99 < 10 else ("the bound was missed",),
        sha256=(variant.encode().hex() * 64)[:64],
    )
    return msgspec.structs.replace(found, **changed)


def write(directory: Path, *results: Any) -> list[Path]:
    """Each result as a file."""
    files = []
    for index, result in enumerate(results):
        file = directory / f"result-{index}.json"
        file.write_bytes(to_json(result))
        files.append(file)
    return files


def whole() -> tuple[BenchReport, ParityReport]:
    """A bench and a verify of five variants: one of each verdict, two of which are fast."""
    base = row("torch-fp32", 2.0, (1, 1, 1), backend="torch")
    host = HostTimes(calls=9, source="x", preprocess_ms=0.118, queue_ms=None, run_ms=0.51, postprocess_ms=0.02)
    spent = {"cpu_seconds_per_image": 0.00123, "joules_per_image": 0.0456, "joules_from": "rapl", "host": host}
    fast = row("onnx-fp32", 0.5, (4, 3.9, 4.1), **spent)
    close = row("onnx-fp16", 0.51, (3.95, 3.8, 4.05))
    wrong = row("onnx-int8", 0.2, (10, 9, 11), verdict=Verdict.FAIL, valid=False, reasons=("wrong output: flips",))
    at_8 = [
        msgspec.structs.replace(r, batch=8, p50_ms=r.p50_ms * 4, images_per_second=r.images_per_second * 2)
        for r in (base, fast, close, wrong)
    ]
    rtx = row("tensorrt-rtx-fp16", 1.0, (1, 1, 1), device="cuda:0", backend="tensorrt-rtx")
    fresh = tuple(
        FreshStart(
            variant=r.variant, backend=r.backend, batch=1, cold_start_ms=800 * r.p50_ms, load_ms=90.0, first_ms=3.0,
            peak_rss_bytes=int(2e8 * r.p50_ms), sha256=r.sha256, size_bytes=3_700_000,
        )
        for r in (base, fast)
    )  # fmt: skip
    loads = tuple(
        scenario(name, qps, p99)
        for name, speed in (("onnx-fp32", 1.0), ("torch-fp32", 4.0))
        for qps, p99 in ((100.0, 2.0 * speed), (200.0, 2.4 * speed), (400.0, 4.0 * speed))
    )
    tries = (
        RateTry(qps=1600.0, queries=900, p50_ms=9.0, p99_ms=31.25, valid=False, reasons=("over",)),
        RateTry(qps=800.0, queries=1000, p50_ms=3.0, p99_ms=9.5, valid=True, confirms=True),
    )
    search = RateSearch(bound_ms=10.0, qps=800.0, tries=tries, seconds=4.0)
    loads += (scenario("onnx-fp32", 800.0, 9.5, search=search, queue_p50_ms=0.25, queue_p99_ms=5.5),)
    records = (
        proof(base, candidate_accuracy=None, reference_accuracy=None),
        proof(fast),
        proof(close, Verdict.INCONCLUSIVE),
        proof(wrong, Verdict.FAIL, candidate_accuracy=0.5),
        proof(rtx, Verdict.UNPROVEN),
    )
    found = bench(base, fast, close, wrong, *at_8, scenarios=loads, fresh=fresh)
    return found, parity(*records, layers=(layers("onnx-int8"),))
