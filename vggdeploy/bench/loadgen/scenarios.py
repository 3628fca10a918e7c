"""MLPerf LoadGen's scenarios: what is asked of LoadGen, and what its answer means for a row.

LoadGen itself decides when a query is sent, how long it took, and whether the run counts (`vggdeploy.bench.loadgen.drive`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from vggdeploy.bench.interference import BUSY_LIMIT
from vggdeploy.bench.stats import calls_needed
from vggdeploy.errors import UsageError, unknown_name
from vggdeploy.records import LoadAnswers, ScenarioRow
from vggdeploy.types import Verdict

MULTI_STREAM_SAMPLES = 8  # a query, as in MLPerf inference
SCENARIOS = ("single_stream", "multi_stream", "server", "offline")
PERCENTILE = {"single_stream": 90, "multi_stream": 99, "server": 99}  # MLPerf's of each scenario
_STREAMS = ("single_stream", "multi_stream")
_AUDIT_LIMIT = 1.1  # MLPerf's TEST04 allows 10%
_AUDITS = 3  # times that a repeated sample has to be faster again, before a session is said to keep answers
_SPARE = 1.1  # more time than the queries would take, so that a faster or slower machine has enough of them


@dataclass(frozen=True)
class Load:
    """What LoadGen is asked for. ``target_qps`` and ``latency_bound_ms`` belong to ``server``; ``batch`` is the largest
    batch that ``server`` and ``offline`` put together. ``find_qps``: search the highest rate instead, from ``target_qps``
    on or, without it, from half of what the session can answer."""

    scenario: str
    seconds: float = 10.0
    min_queries: int = 64
    batch: int = 8
    target_qps: float | None = None
    latency_bound_ms: float | None = None
    find_qps: bool = False

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise unknown_name("scenario", self.scenario, SCENARIOS)
        if self.scenario == "server" and not ((self.target_qps or self.find_qps) and self.latency_bound_ms):
            raise UsageError(
                "the server scenario needs a rate and a bound",
                "give --target-qps and --latency-bound, or --find-qps and --latency-bound",
            )
        if self.seconds <= 0 or self.batch < 1 or self.min_queries < 1:
            raise UsageError("a load needs a time, a batch and queries above 0", "for example --duration 10")
        for value in (self.target_qps, self.latency_bound_ms):
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"a rate or bound cannot be {value:g}", "give a number above 0")

    @property
    def largest_batch(self) -> int:
        """The largest batch that a session is given."""
        if self.scenario in _STREAMS:
            return MULTI_STREAM_SAMPLES if self.scenario == "multi_stream" else 1
        return self.batch


class Issued(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What LoadGen found in one performance run. Times are milliseconds; a latency is that of a query.

    ``needed`` is how many queries its early stopping wants, None where it has enough; ``words`` is its own reason for an
    INVALID. ``queue_ms`` and ``run_ms`` are the (p50, p99) of ``server``: from the arrival of a query to the start of the
    batch that it is in, and of that batch. ``others`` is the share of the cores that other processes used. ``failed`` says
    in words which queries had no answer: of a server that is asked over a network.
    """

    valid: bool
    words: str
    queries: int
    samples_per_second: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    estimate_ms: float | None = None
    needed: int | None = None
    bound_met: bool = True
    piled_up: bool = False
    queue_ms: tuple[float | None, float | None] = (None, None)
    run_ms: tuple[float | None, float | None] = (None, None)
    others: float | None = None
    version: str = ""
    seeds: dict[str, int] = {}
    failed: str = ""


Issue = Callable[[Load, Literal["unique", "same"]], Issued]


def run_scenario(issue: Issue, load: Load, answers: LoadAnswers | None = None, **about: Any) -> ScenarioRow:
    """Run one scenario; the stream scenarios once more on a single repeated sample (MLPerf's audit TEST04): a session
    that is faster on that one keeps answers, and its latency is nobody else's.

    Args:
        issue: has LoadGen run a load, on distinct samples or on one.
        answers: what the accuracy run of the same load found.
        about: the row's variant, backend, device, verdict and hash.

    Raises:
        VggdeployError: the session failed under load.
    """
    issued = issue(load, "unique")
    # A quarter of the time is enough for a median.
    part = replace(load, seconds=load.seconds / 4)
    same = issue(part, "same") if load.scenario in _STREAMS else None
    ratio = _repeated_is_faster(issued, same)
    for _ in range(_AUDITS):
        if ratio is None or ratio <= _AUDIT_LIMIT:
            break
        # The machine may have changed its speed between the two: what keeps answers is faster each time.
        ratio = min(ratio, _repeated_is_faster(issue(part, "unique"), issue(part, "same")) or ratio)
    return scenario_row(load, issued, same, answers, ratio=ratio, **about)


def _repeated_is_faster(unique: Issued, same: Issued | None) -> float | None:
    """How many times."""
    return unique.p50_ms / same.p50_ms if same and same.p50_ms and unique.p50_ms else None


def scenario_row(
    load: Load,
    found: Issued,
    same: Issued | None,
    answers: LoadAnswers | None,
    *,
    verdict: Verdict,
    ratio: float | None = None,
    **about: Any,
) -> ScenarioRow:
    """The row of what was found; ``same`` is the run on one repeated sample, which was ``ratio`` times as fast."""
    reasons = invalid_reasons(load, found)
    others = max((run.others for run in (found, same) if run and run.others is not None), default=None)
    if others is not None and others > BUSY_LIMIT:
        reasons.append(f"busy machine: other processes used {others:.0%} of the cores")
    if ratio is not None and ratio > _AUDIT_LIMIT:
        reasons.append(f"a repeated sample is {ratio:.2f} × as fast as distinct ones: something is cached")
    if answers is not None and answers.verdict is Verdict.FAIL:
        verdict = Verdict.FAIL
        reasons += [f"wrong output under load: {reason}" for reason in answers.reasons]
    return filled_row(
        found, reasons, scenario=load.scenario, batch=load.largest_batch, target_qps=load.target_qps,
        latency_bound_ms=load.latency_bound_ms, samples_per_second=found.samples_per_second, unique_over_same=ratio,
        verdict=verdict, answers=answers, **about,
    )  # fmt: skip


def filled_row(found: Issued, reasons: Sequence[str], **about: Any) -> ScenarioRow:
    """A row with what was found under one load; it counts where nothing speaks against it. ``about``: the other fields."""
    return ScenarioRow(
        queries=found.queries,
        p50_ms=found.p50_ms,
        p90_ms=found.p90_ms if found.queries >= calls_needed(90) else None,
        p99_ms=found.p99_ms if found.queries >= calls_needed(99) else None,
        estimate_ms=found.estimate_ms,
        valid=not reasons,
        reasons=tuple(reasons),
        queue_p50_ms=found.queue_ms[0],
        queue_p99_ms=found.queue_ms[1],
        run_p50_ms=found.run_ms[0],
        run_p99_ms=found.run_ms[1],
        loadgen=found.version,
        seeds=found.seeds,
        **about,
    )


def invalid_reasons(load: Load, found: Issued) -> list[str]:
    """Why LoadGen calls a run INVALID, in a sentence that says what to change; empty for a VALID one."""
    if found.valid:
        return []
    if found.failed:
        return [found.failed]
    if found.piled_up:
        return [f"queries piled up: {load.target_qps:g} a second are more than the session answers"]
    if not found.bound_met:
        return [
            f"p99 of {found.p99_ms:.3g} ms is above the bound of {load.latency_bound_ms:g} ms (LoadGen: {found.words})"
        ]
    reasons = [f"LoadGen: {found.words}"] if found.words else []
    if found.needed is not None:
        name = f"p{PERCENTILE[load.scenario]}"
        reasons.append(
            f"too few queries for {name}: {found.queries} of {found.needed}; give --duration {_duration(load, found)}"
        )
    return reasons or ["LoadGen calls it INVALID, and gives no reason"]


def _duration(load: Load, found: Issued) -> int:
    """Whole seconds in which the needed queries are answered."""
    assert found.needed is not None  # noqa: S101  # asked for then only
    rate = load.target_qps or found.samples_per_second / load.largest_batch
    return math.ceil(_SPARE * found.needed / rate)
