"""``vggdeploy bench --url``: a server under load, ours or another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vggdeploy.errors import UsageError

if TYPE_CHECKING:
    from vggdeploy.bundle import Bundle
    from vggdeploy.records import BenchReport

MAX_CALLERS = 1024


@dataclass(frozen=True)
class Asked:
    """What was typed."""

    bundles: Sequence[Path]
    url: str
    model: str
    concurrency: str
    rates: str
    connections: int
    token_file: Path | None
    batch: str
    seconds: float
    find_qps: bool
    latency_bound: float | None
    variants: Sequence[str]
    data: str
    data_dir: Path | None


def ask_server(asked: Asked) -> tuple[BenchReport, list[Bundle]]:
    """What was measured, and the bundle that it was held against, if one was given.

    Raises:
        UsageError: several bundles, batch sizes or variants; a number of callers that is none.
    """
    from vggdeploy.bench.remote.run import ServerPlan, bench_server
    from vggdeploy.bench.remote.target import parse_url, token_from
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import render
    from vggdeploy.cli.options import number_list, split_numbers, with_command

    for what, given in (
        ("bundle", asked.bundles),
        ("variant", asked.variants),
        ("batch size", split_numbers(asked.batch)),
    ):
        if len(given) > 1:
            raise UsageError(f"--url is measured with one {what}, and {len(given)} are given", "give one")
    if asked.variants and not asked.bundles:
        raise UsageError("--variant says by which limits a bundle's answers are judged", "give the BUNDLE, too")
    if not 1 <= asked.connections <= MAX_CALLERS:
        raise UsageError(f"--connections is {asked.connections}", f"give 1 to {MAX_CALLERS}")
    callers = number_list(asked.concurrency, "--concurrency")
    if not all(number.is_integer() and number <= MAX_CALLERS for number in callers):
        raise UsageError(f"--concurrency is {asked.concurrency}", f"give whole numbers from 1 to {MAX_CALLERS}")
    target = replace(parse_url(asked.url), model=asked.model, token=token_from(asked.token_file))
    opened = [Bundle.open(path) for path in asked.bundles]
    plan = ServerPlan(
        batch=split_numbers(asked.batch)[0],
        callers=[int(number) for number in callers],
        rates=number_list(asked.rates, "--rates"),
        latency_bound_ms=asked.latency_bound,
        find_qps=asked.find_qps,
        seconds=asked.seconds,
        connections=asked.connections,
        variant=next(iter(asked.variants), ""),
        data=asked.data,
        data_dir=asked.data_dir,
    )
    with render.progress("asking the server", refresh_per_second=2) as tell:
        report = with_command(bench_server(target, next(iter(opened), None), plan, on_progress=tell))
    return report, opened
