"""The scenario part of ``vggdeploy bench``: each variant, in a process of its own, under each load that LoadGen issues.

LoadGen is C++ that calls back into Python, and cannot be stopped; a process can.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from vggdeploy.bench.candidates import Entry
from vggdeploy.bench.crew import Worker, shared
from vggdeploy.bench.loadgen.rates import Search, no_rate
from vggdeploy.bench.loadgen.scenarios import Issued, Load, run_scenario, scenario_row
from vggdeploy.bench.messages import (
    AnswersReply,
    AnswersRequest,
    CheckReply,
    CheckRequest,
    GaugeReply,
    GaugeRequest,
    LoadRequest,
    OpenReply,
    OpenRequest,
    StartRequest,
)
from vggdeploy.errors import UsageError
from vggdeploy.records import LoadAnswers, ScenarioRow
from vggdeploy.runtime import backend_for
from vggdeploy.types import OnProgress, Steps, silent


def run_loads(
    entries: Sequence[Entry],
    images: Any,
    loads: Sequence[Load],
    *,
    threads: int | None = None,
    on_progress: OnProgress = silent,
) -> list[ScenarioRow]:
    """Each entry under each load, with its golden pair checked before and its answers under the same load.

    Returns:
        Rows by load; those of one load in the order of the entries.

    Raises:
        UsageError: a load needs a larger batch than a variant takes.
        VggdeployError: a session failed under load, or its process was killed.
    """
    for load in loads:
        for entry in entries:
            if load.largest_batch > entry.variant.batch.max:
                raise UsageError(
                    f"{load.scenario} makes batches of {load.largest_batch}, {entry.name} takes {entry.variant.batch.max}",
                    "measure a smaller --batch, or export/build with a larger maximum",
                )
    steps = Steps(on_progress, len(entries) * len(loads), "measuring")
    found: list[list[ScenarioRow]] = [[] for _ in loads]
    with shared(images) as descriptor:
        for entry in entries:
            with _open(entry, descriptor, loads, threads) as opened:
                for load, rows in zip(loads, found, strict=True):
                    rows.append(_run(opened, load, on_progress))
                    steps.advance()
    return [row for rows in found for row in rows]


@dataclass(frozen=True)
class _Opened:
    """An entry that is open in its process, and what the golden pair said of it."""

    entry: Entry
    worker: Worker
    checked: CheckReply

    def issue(self, load: Load, samples: Literal["unique", "same"] = "unique") -> Issued:
        return self.worker.ask(LoadRequest(name=self.entry.name, load=load, samples=samples), Issued)

    def answers(self, load: Load) -> LoadAnswers:
        return self.worker.ask(AnswersRequest(name=self.entry.name, load=load), AnswersReply).answers

    def capacity(self, batch: int) -> float:
        return self.worker.ask(GaugeRequest(name=self.entry.name, batch=batch), GaugeReply).qps


@contextmanager
def _open(entry: Entry, descriptor: int, loads: Sequence[Load], threads: int | None) -> Iterator[_Opened]:
    """A process with the entry's session. After an error or Ctrl-C it is killed: LoadGen would go on to its end."""
    worker = Worker(StartRequest(pool=f"/proc/self/fd/{descriptor}", threads=threads), descriptor)
    try:
        batches = tuple({max(load.largest_batch, entry.variant.batch.min): None for load in loads})
        opening = OpenRequest(
            name=entry.name,
            bundle=str(entry.bundle.root),
            variant=entry.variant.name,
            device=str(entry.device),
            batches=batches,
        )
        worker.ask(opening, OpenReply)
        yield _Opened(entry, worker, worker.ask(CheckRequest(name=entry.name), CheckReply))
    except BaseException:
        worker.close(kill=True)
        raise
    worker.close()


def _run(opened: _Opened, load: Load, on_progress: OnProgress) -> ScenarioRow:
    entry, checked = opened.entry, opened.checked
    about: dict[str, Any] = {
        "variant": entry.name,
        "backend": backend_for(entry.variant).name,
        "device": str(entry.device),
        "on_cpu": entry.on_cpu,
        "verdict": checked.verdict,
        "sha256": entry.sha256,
    }
    if load.find_qps and load.scenario == "server":
        search = Search(opened.issue, load, load.target_qps or opened.capacity(load.batch) / 2)
        on_progress(None, f"{entry.name}: {search.plan()}")
        searched, load, issued = search.run()
        row = msgspec.structs.replace(scenario_row(load, issued, None, opened.answers(load), **about), search=searched)
        if searched.qps is None:
            row = msgspec.structs.replace(row, reasons=(no_rate(searched), *row.reasons))
    else:
        row = run_scenario(opened.issue, load, opened.answers(load), **about)
    reasons = (*checked.reasons, *row.reasons)
    return msgspec.structs.replace(row, reasons=reasons, valid=not reasons)
