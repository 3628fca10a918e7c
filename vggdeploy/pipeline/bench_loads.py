"""The scenario part of ``vggdeploy bench``: each variant under each load that LoadGen issues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import msgspec

from vggdeploy.bench.answers import check_answers
from vggdeploy.bench.candidate import open_checked
from vggdeploy.bench.entries import Entry
from vggdeploy.bench.loadgen import capacity, issue
from vggdeploy.bench.qps import Search, no_rate
from vggdeploy.bench.scenarios import Load, run_scenario, scenario_row
from vggdeploy.errors import UsageError
from vggdeploy.parity.compare import golden_reference
from vggdeploy.records import ScenarioRow
from vggdeploy.runtime import backend_for

Say = Callable[[str], None]


def run_loads(
    entries: Sequence[Entry],
    images: Any,
    loads: Sequence[Load],
    *,
    threads: int | None = None,
    on_progress: Callable[[int], None] = lambda steps: None,
    on_say: Say = lambda text: None,
) -> list[ScenarioRow]:
    """Each entry under each load, with its golden pair checked before and its answers under the same load.

    Raises:
        UsageError: a load needs a larger batch than a variant takes.
        VggdeployError: a session failed under load.
    """
    for load in loads:
        for entry in entries:
            if load.largest_batch > entry.variant.batch.max:
                raise UsageError(
                    f"{load.scenario} makes batches of {load.largest_batch}, {entry.name} takes {entry.variant.batch.max}",
                    "measure a smaller --batch, or export/build with a larger maximum",
                )
    rows = []
    for load in loads:
        for entry in entries:
            rows.append(_run(entry, images, load, threads, on_say))
            on_progress(1)
    return rows


def _run(entry: Entry, images: Any, load: Load, threads: int | None, say: Say) -> ScenarioRow:
    with ExitStack() as stack:
        opened = open_checked(stack, entry, threads)
        session = opened.session
        golden, thresholds = golden_reference(entry.bundle), entry.bundle.manifest.thresholds[entry.variant.precision]
        about: dict[str, Any] = {
            "variant": entry.name,
            "backend": backend_for(entry.variant).name,
            "device": str(entry.device),
            "verdict": opened.verdict,
            "sha256": entry.sha256,
        }
        run = partial(issue, session, images)
        if load.find_qps:
            start = load.target_qps or capacity(session, images, load.batch) / 2
            search = Search(lambda wanted: run(wanted, "unique"), load, start)
            say(f"{entry.name}: {search.plan()}")
            found, load, issued = search.run()
            answers = check_answers(session, golden, images, load, thresholds)
            row = msgspec.structs.replace(scenario_row(load, issued, None, answers, **about), search=found)
            if found.qps is None:
                row = msgspec.structs.replace(row, reasons=(no_rate(found), *row.reasons), valid=False)
        else:
            answers = check_answers(session, golden, images, load, thresholds)
            row = run_scenario(run, load, answers, **about)
    reasons = (*opened.reasons, *row.reasons)
    return msgspec.structs.replace(row, reasons=reasons, valid=not reasons)
