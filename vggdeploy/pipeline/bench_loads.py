"""The scenario part of ``vggdeploy bench``: each variant under each load that LoadGen issues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import msgspec

from vggdeploy.bench.answers import check_answers
from vggdeploy.bench.compare import open_checked
from vggdeploy.bench.entries import Entry
from vggdeploy.bench.loadgen import issue
from vggdeploy.bench.scenarios import Load, run_scenario
from vggdeploy.errors import UsageError
from vggdeploy.parity.compare import golden_reference
from vggdeploy.records import ScenarioRow
from vggdeploy.runtime import backend_for


def run_loads(
    entries: Sequence[Entry],
    images: Any,
    loads: Sequence[Load],
    *,
    threads: int | None = None,
    on_progress: Callable[[int], None] = lambda steps: None,
) -> list[ScenarioRow]:
    """Each entry under each load, with its golden pair and the answers under load checked first.

    Raises:
        UsageError: a load needs a larger batch than a variant takes.
        VggdeployError: a session failed under load.
    """
    rows = []
    for load in loads:
        for entry in entries:
            if load.largest_batch > entry.variant.batch.max:
                raise UsageError(
                    f"{load.scenario} makes batches of {load.largest_batch}, {entry.name} takes {entry.variant.batch.max}",
                    "measure a smaller --batch, or export/build with a larger maximum",
                )
    for load in loads:
        for entry in entries:
            rows.append(_run(entry, images, load, threads))
            on_progress(1)
    return rows


def _run(entry: Entry, images: Any, load: Load, threads: int | None) -> ScenarioRow:
    with ExitStack() as stack:
        opened = open_checked(stack, entry, load.batch, threads)
        thresholds = entry.bundle.manifest.thresholds[entry.variant.precision]
        answers = check_answers(opened.session, golden_reference(entry.bundle), images, load, thresholds)
        row = run_scenario(
            partial(issue, opened.session, images),
            load,
            answers,
            variant=entry.name,
            backend=backend_for(entry.variant).name,
            device=str(entry.device),
            verdict=opened.verdict,
            sha256=entry.sha256,
        )
    reasons = (*opened.reasons, *row.reasons)
    return msgspec.structs.replace(row, reasons=reasons, valid=not reasons)
