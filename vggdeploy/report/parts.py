"""What a report is put together from: figures and sections, and what all of them are named and coloured by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggdeploy.records import BenchReport
from vggdeploy.report import grids
from vggdeploy.report.documents import Results
from vggdeploy.report.subjects import Cast
from vggdeploy.report.tables import Grid

if TYPE_CHECKING:
    from vggdeploy.report.plots import Chart


@dataclass(frozen=True)
class Figure:
    """A picture: ``text`` says what is in it to who cannot see it; ``draw`` makes it, and imports Altair."""

    text: str
    draw: Callable[[], Chart]
    heading: str = ""


@dataclass(frozen=True)
class Section:
    """``missing`` says what was not measured, and the command that measures it; ``notes`` why something does not count."""

    anchor: str
    title: str
    text: str = ""
    figures: tuple[Figure, ...] = ()
    grids: tuple[Grid, ...] = ()
    commands: tuple[str, ...] = ()
    missing: str = ""
    notes: tuple[str, ...] = ()

    @property
    def holds_anything(self) -> bool:
        """More than a sentence on what is missing."""
        return bool(self.figures or self.commands or any(grid.rows for grid in self.grids))


def groups(cast: Cast) -> dict[str, str]:
    """All variants of the report, each with its backend, whose colour and mark it has in all of its pictures."""
    return {subject.label: subject.backend for subject in cast.subjects}


def heading(results: Results, bench: BenchReport, text: str = "") -> str:
    """What a picture of one bench is called: the bench is named where there are several."""
    run = grids.run_name(bench) if len([b for b in results.bench if b.rows]) > 1 else ""
    return ": ".join(part for part in (text, run) if part)


def drawn(chart: str, rows: list[dict[str, Any]], **more: Any) -> Callable[[], Chart]:
    """What draws one of `vggdeploy.report.charts`."""

    def draw() -> Chart:
        from vggdeploy.report import charts, row_charts  # only now: they import Altair

        drawn: Chart = getattr(charts if hasattr(charts, chart) else row_charts, chart)(rows, **more)
        return drawn

    return draw
