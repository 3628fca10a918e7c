"""From what a client saw of a server to a row, and why it does not count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vggdeploy.bench.interference import BUSY_LIMIT
from vggdeploy.bench.loadgen.scenarios import Load, filled_row, invalid_reasons
from vggdeploy.bench.messages import ServerLoadReply
from vggdeploy.bench.remote.target import ServedModel, Target
from vggdeploy.bench.stats import calls_needed, spread
from vggdeploy.records import LoadAnswers, ScenarioRow
from vggdeploy.records.bench import ServerTimes
from vggdeploy.types import Verdict

CALLERS = "callers"
CLIENT_LIMIT = 0.8  # cores: Python runs one thread at a time
QUEUE_LIMIT = 0.2  # of the p99 that was waiting for a connection of the client
KEPT_UP = 0.95  # of a rate
SPREAD_LIMIT = 0.10  # of the rates of the parts of the time, as perf_analyzer asks for


@dataclass(frozen=True)
class Case:
    """What all rows of one server have in common; ``images`` are asked under load, ``bound`` is None where none was given."""

    name: str
    about: ServedModel
    target: Target
    batch: int
    bound: float | None
    images: int


def server_row(
    case: Case, load: Load | None, connections: int, reply: ServerLoadReply, times: ServerTimes | None
) -> ScenarioRow:
    """The row of one load; ``load`` is None for callers that wait."""
    issued = reply.issued
    wrong = _wrong(reply)
    reasons = [*wrong, *(invalid_reasons(load, issued) if load else _too_few(reply)), *_doubts(case, load, reply)]
    return filled_row(
        issued,
        reasons,
        variant=case.name,
        backend="grpc" if case.target.grpc else "http",
        device="server",
        scenario=load.scenario if load else CALLERS,
        batch=case.batch,
        target_qps=load.target_qps if load else None,
        latency_bound_ms=case.bound if load else None,
        samples_per_second=issued.samples_per_second * case.batch,
        unique_over_same=None,
        verdict=Verdict.FAIL if wrong else Verdict.UNPROVEN,
        answers=LoadAnswers(
            images=case.images, misplaced=reply.misplaced, changed=reply.changed, outputs=(),
            verdict=Verdict.FAIL if wrong else Verdict.PASS, reasons=tuple(wrong),
        ),
        connections=connections,
        failed=reply.failed,
        client_cores=reply.client_cores,
        server=times,
    )  # fmt: skip


def _wrong(reply: ServerLoadReply) -> list[str]:
    reasons = []
    if reply.misplaced:
        reasons.append(f"wrong output under load: {reply.misplaced:,} answers belong to other requests")
    if reply.foreign:
        reasons.append(
            f"wrong output under load: {reply.foreign:,} answers are others than the bundle's own to the same images"
        )
    if reply.changed:
        reasons.append(f"wrong output under load: {reply.changed:,} answers are others than without load")
    return reasons


def _too_few(reply: ServerLoadReply) -> list[str]:
    """Of callers that wait."""
    issued = reply.issued
    reasons = [issued.failed] if issued.failed else []
    if issued.queries < calls_needed(99):
        reasons.append(f"too few requests for p99: {issued.queries} of {calls_needed(99)}; give more --duration")
    return reasons


def _doubts(case: Case, load: Load | None, reply: ServerLoadReply) -> list[str]:
    """Whether it was the client, or something else on this machine, that was measured."""
    issued, reasons = reply.issued, []
    if reply.client_cores > CLIENT_LIMIT:
        reasons.append(
            f"the client is the limit: asking took it {reply.client_cores:.0%} of a core; ask larger --batch, or less"
        )
    if issued.others is not None and issued.others > BUSY_LIMIT and not case.target.on_this_machine:
        reasons.append(f"busy machine: other processes used {issued.others:.0%} of the client's cores")
    if reply.windows and min(reply.windows) > 0 and (apart := spread(reply.windows)) > SPREAD_LIMIT:
        reasons.append(f"unstable: the rates of {len(reply.windows)} parts of the time spread by {apart:.0%}")
    if reply.windows and min(reply.windows) == 0:
        reasons.append("unstable: in a part of the time no answer came; give more --duration")
    if load is None or issued.failed:
        return reasons
    if load.target_qps and not issued.piled_up and issued.samples_per_second < KEPT_UP * load.target_qps:
        reasons.append(
            f"the server answered {issued.samples_per_second:.3g} of {load.target_qps:g} requests a second: they pile up"
        )
    waited = issued.queue_ms[1]
    if waited is not None and issued.p99_ms and waited > QUEUE_LIMIT * issued.p99_ms:
        reasons.append(
            f"requests waited up to {waited:.3g} ms (p99) for a free connection of the client; give more --connections, "
            "or fewer requests a second"
        )
    return reasons


def server_times(before: dict[str, Any] | None, after: dict[str, Any] | None) -> ServerTimes | None:
    """What the server's statistics say of the time between; None where it has none, or began anew meanwhile."""
    if before is None or after is None:
        return None
    try:
        counts, times = {}, {}
        for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
            one, other = (found["inference_stats"][name] for found in (before, after))
            counts[name] = int(other["count"]) - int(one["count"])
            times[name] = (int(other["ns"]) - int(one["ns"])) / 1e6
    except (KeyError, TypeError, ValueError):
        return None
    if counts["success"] <= 0 or min(counts.values()) < 0 or min(times.values()) < 0:
        return None
    each = {name: ms / counts["success"] for name, ms in times.items()}
    return ServerTimes(
        requests=counts["success"], failed=counts["fail"], queue_ms=each["queue"], input_ms=each["compute_input"],
        run_ms=each["compute_infer"], output_ms=each["compute_output"],
    )  # fmt: skip
