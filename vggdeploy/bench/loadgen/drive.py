"""One run of MLPerf LoadGen over an open session: its settings, and the reading of its logs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import mlperf_loadgen as lg
import numpy as np

from vggdeploy.bench.interference import CpuWatch
from vggdeploy.bench.loadgen.scenarios import MULTI_STREAM_SAMPLES, PERCENTILE, Issued, Load
from vggdeploy.bench.loadgen.sut import Answering, SystemUnderTest
from vggdeploy.bench.stats import percentile
from vggdeploy.parity.reference import Array
from vggdeploy.runtime import CheckedSession
from vggdeploy.system.drafts import temporary_directory

_SCENARIOS = {
    "single_stream": lg.TestScenario.SingleStream,
    "multi_stream": lg.TestScenario.MultiStream,
    "server": lg.TestScenario.Server,
    "offline": lg.TestScenario.Offline,
}
# MLPerf's rules fix the seeds a round anew; ours are fixed, and stand in every row.
SEEDS = {"qsl_rng_seed": 20_140_904, "sample_index_rng_seed": 20_140_905, "schedule_rng_seed": 20_140_906}
_PER_QUERY = "per_query_"
_ESTIMATE = {"single_stream": "early_stopping_latency_ss", "multi_stream": "early_stopping_latency_ms"}
_BURST = 4.0  # times the rate of server, in an accuracy run: batches have to form


def issue(session: CheckedSession, images: Array, load: Load, samples: Literal["unique", "same"]) -> Issued:
    """Have LoadGen issue a load: distinct samples of the pool, or one of them again and again.

    Raises:
        VggdeployError: the session failed under load.
    """
    return issue_to(SystemUnderTest(session, images, load), len(images), load, samples)


def issue_to(system: Answering, count: int, load: Load, samples: Literal["unique", "same"] = "unique") -> Issued:
    """`issue`, to whatever answers: ``count`` distinct samples.

    Raises:
        VggdeployError: it failed under load.
    """
    settings = _settings(system, load)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.performance_issue_same = samples == "same"
    watch = CpuWatch()
    with _run(system, settings, count) as logs:
        others = watch.others()
        return _issued(read_log(logs / "mlperf_log_detail.txt"), load, system, others)


def capacity(session: CheckedSession, images: Array, batch: int) -> float:
    """Samples a second that the session answers when it does nothing else: in batches, or one by one if that is faster."""
    system = SystemUnderTest(session, images, Load("offline", batch=batch))
    return max(size / system.milliseconds(size) * 1e3 for size in {1, batch})


def answer_log(session: CheckedSession, images: Array, load: Load) -> tuple[list[int], Array]:
    """LoadGen's accuracy mode: it asks every image once, in its own order and under the load's scenario, and writes down
    which bytes came back for which image.

    Returns:
        The image of each answer, and the answers as `vggdeploy.bench.loadgen.sut.pack` has them: ``float32 [N, values]``. The
        last query of ``multi_stream`` is filled up with images that were asked before.

    Raises:
        VggdeployError: the session failed under load.
    """
    system = SystemUnderTest(session, images, load, hand_over=True)
    settings = _settings(system, load)
    settings.mode = lg.TestMode.AccuracyOnly
    if load.scenario == "server":
        settings.server_target_qps = max(_BURST * (load.target_qps or 0), len(images) / load.seconds)
        settings.server_max_async_queries = 0
    with _run(system, settings, len(images)) as logs:
        answers = json.loads((logs / "mlperf_log_accuracy.json").read_bytes())
    values = [np.frombuffer(bytes.fromhex(answer["data"]), np.float32) for answer in answers]
    return [answer["qsl_idx"] for answer in answers], np.stack(values)


@contextmanager
def _run(system: Answering, settings: Any, images: int) -> Iterator[Path]:
    """Run LoadGen to its end; gives the directory of its logs."""
    with temporary_directory("vggdeploy-loadgen-") as directory:
        log = lg.LogSettings()
        log.enable_trace = False
        log.log_output.outdir = str(directory)
        log.log_output.copy_summary_to_stdout = False
        sut = lg.ConstructSUT(system.issue, system.flush)
        library = lg.ConstructQSL(images, images, lambda samples: None, lambda samples: None)
        try:
            with system:
                lg.StartTestWithLogSettings(sut, library, settings, log, "")
        finally:
            lg.DestroyQSL(library)
            lg.DestroySUT(sut)
        if system.error is not None:
            raise system.error
        yield directory


def _settings(system: Answering, load: Load) -> Any:
    settings = lg.TestSettings()
    settings.scenario = _SCENARIOS[load.scenario]
    settings.min_duration_ms = int(load.seconds * 1e3)
    settings.min_query_count = 1 if load.scenario == "offline" else load.min_queries
    for name, seed in SEEDS.items():
        setattr(settings, name, seed)
    # LoadGen prepares its queries from these; half the time of a call leaves room for a machine that speeds up.
    if load.scenario == "single_stream":
        settings.single_stream_expected_latency_ns = int(system.milliseconds(1) * 0.5e6)
    elif load.scenario == "multi_stream":
        settings.multi_stream_samples_per_query = MULTI_STREAM_SAMPLES
        settings.multi_stream_expected_latency_ns = int(system.milliseconds(MULTI_STREAM_SAMPLES) * 0.5e6)
    elif load.scenario == "offline":
        settings.offline_expected_qps = 1.2 * load.batch / (system.milliseconds(load.batch) / 1e3)
    else:
        system.milliseconds(load.batch)  # warm-up
        rate, bound = load.target_qps or 0.0, (load.latency_bound_ms or 0.0) / 1e3
        settings.server_target_qps = rate
        settings.server_target_latency_ns = int(bound * 1e9)
        settings.server_target_latency_percentile = PERCENTILE["server"] / 100
        # With so many waiting, three quarters of them are late already, and they are more than 1% of all: the run
        # cannot become valid, and to answer the rest would take for ever.
        queries = max(rate * load.seconds, load.min_queries)
        settings.server_max_async_queries = int(max(64, 4 * rate * bound, 0.02 * queries)) + load.batch
    return settings


def read_log(path: Path) -> dict[str, Any]:
    """LoadGen's detail log: lines of ``:::MLLOG {json}``; of a key that comes twice the last value."""
    lines = path.read_text(encoding="utf-8").splitlines()
    records = (json.loads(line.partition(" ")[2]) for line in lines if line.startswith(":::MLLOG"))
    return {record["key"]: record["value"] for record in records}


def _issued(found: dict[str, Any], load: Load, system: Answering, others: float | None) -> Issued:
    early = " ".join(str(found.get("early_stopping_result", "")).split())
    return Issued(
        valid=found["result_validity"] == "VALID",
        words=" ".join(found.get("result_invalid_reason", "").split()),
        queries=found["result_query_count"],
        samples_per_second=_rate(found, load),
        p50_ms=_latency(found, "50.00"),
        p90_ms=_latency(found, "90.00"),
        p99_ms=_latency(found, "99.00"),
        estimate_ms=_estimate(found, load),
        needed=None if found.get("early_stopping_met", True) else queries_wanted(early, found["result_query_count"]),
        bound_met=found.get("result_perf_constraints_met", True),
        piled_up="Too many outstanding queries" in str(found.get("error_runtime", "")),
        queue_ms=_middle_and_tail(system.queue_ms),
        run_ms=_middle_and_tail(system.run_ms),
        others=others,
        version=str(found.get("loadgen_version", "")),
        seeds=SEEDS,
    )


def queries_wanted(words: str, queries: int) -> int | None:
    """How many queries LoadGen's early stopping asks for, read from its sentence; None where it names no number."""
    more = re.search(r"at least (\d+) more queries", words)
    if more:
        return queries + int(more[1])
    total = re.search(r"at least (\d+) queries", words)
    return int(total[1]) if total else None


def _middle_and_tail(times: list[float]) -> tuple[float | None, float | None]:
    return percentile(times, 50), percentile(times, 99)


def _latency(found: dict[str, Any], name: str) -> float | None:
    """A percentile of query latency in ms; of the one query of ``offline`` there is none."""
    if found["result_query_count"] == 1:
        return None
    per_query = found.get(f"result_{name}_percentile_{_PER_QUERY}latency_ns")
    value = per_query if per_query is not None else found[f"result_{name}_percentile_latency_ns"]
    return float(value) / 1e6


def _rate(found: dict[str, Any], load: Load) -> float:
    if load.scenario == "server":
        return float(found["result_completed_samples_per_sec"])
    if load.scenario == "offline":
        return float(found["result_samples_per_second"])
    mean = found.get("result_mean_query_latency_ns", found["result_mean_latency_ns"])
    return load.largest_batch / (float(mean) / 1e9)


def _estimate(found: dict[str, Any], load: Load) -> float | None:
    """LoadGen's early-stopping estimate: p90 of ``single_stream``, p99 of ``multi_stream``."""
    value = found.get(_ESTIMATE.get(load.scenario, ""), 0)
    return float(value) / 1e6 if value else None
