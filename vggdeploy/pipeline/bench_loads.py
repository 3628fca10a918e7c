"""The scenario part of ``vggdeploy bench``: each variant under each load that LoadGen issues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec

from vggdeploy.bench.compare import open_checked
from vggdeploy.bench.entries import Entry
from vggdeploy.bench.scenarios import Load, run_scenario
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
    """Each entry under each load, with its golden pair checked first."""
    rows = []
    for load in loads:
        for entry in entries:
            rows.append(_run(entry, images, load, threads))
            on_progress(1)
    return rows


def _run(entry: Entry, images: Any, load: Load, threads: int | None) -> ScenarioRow:
    with ExitStack() as stack:
        opened = open_checked(stack, entry, load.batch, threads)
        row = run_scenario(
            opened.session,
            images,
            load,
            variant=entry.name,
            backend=backend_for(entry.variant).name,
            device=str(entry.device),
            verdict=opened.verdict,
            sha256=entry.sha256,
        )
    reasons = (*opened.reasons, *row.reasons)
    return msgspec.structs.replace(row, reasons=reasons, valid=not reasons)
