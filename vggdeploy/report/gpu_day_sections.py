"""The parts of a report on a GPU day: its networks, the operations alone, what was tried, and what was not taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vggdeploy.errors import one_line
from vggdeploy.records.gpu_day import Check, CopyRate, Fact, GpuDay, NetworkRate, OperationRate, Reading, StepOutcome
from vggdeploy.report.digits import figures
from vggdeploy.report.gpu_days import NETWORK, networks
from vggdeploy.report.parts import Figure, Section, drawn
from vggdeploy.report.tables import FIGURES, Cell, Column, Facts, Grid, grid
from vggdeploy.types import Verdict


def _text(key: str, title: str, *, long: bool = False) -> Column:
    return Column(key, title, left=True, long=long)


_OUTCOMES = {StepOutcome.DONE: Verdict.PASS, StepOutcome.FAILED: Verdict.FAIL, StepOutcome.CUT: Verdict.INCONCLUSIVE}
_CHECKS = {"passed": Verdict.PASS, "failed": Verdict.FAIL}
_PRECISION = _text("precision", "precision")
_MS = Column("milliseconds", "p50 ms", FIGURES)
_RATE = Column("tera_ops", "TOP/s", FIGURES)

NETWORKS = (
    _text("network", "network"), Column("batch", "batch", "d"), _MS, Column("images_per_second", "images/s", FIGURES), _RATE,
    _PRECISION, _text("by", "by"), Column("copies", "copies", lambda there: "with" if there else "without", left=True),
    Column("relative_l2", "relative L2 to FP64", ".1e"),
    Column("flips", "top-1 changes", lambda flips, images: f"{flips}/{images}", ("images",)),
)  # fmt: skip
OPERATIONS = (
    _text("operation", "operation"), _text("shape", "shape"), Column("milliseconds", "ms", FIGURES), _RATE, _PRECISION,
    _text("by", "by"),
)  # fmt: skip
COPIES = (
    Column("to_gpu", "direction", lambda to: "to the GPU" if to else "from the GPU", left=True),
    Column("pinned", "memory", lambda pinned: "pinned" if pinned else "pageable", left=True),
    Column("bytes", "size MB", FIGURES, scale=1e-6), Column("gigabytes_per_second", "GB/s", FIGURES),
)  # fmt: skip
CHECKS = (
    _text("what", "tried"),
    Column("outcome", "outcome", lambda outcome: Cell(outcome, light=_CHECKS.get(outcome, Verdict.UNPROVEN)), left=True),
    _text("told", "seen, or why not", long=True),
)  # fmt: skip
FACTS = (_text("name", "what"), _text("value", "value"))
STEPS = (
    _text("name", "step"),
    Column("outcome", "outcome", lambda o: Cell(str(o), light=_OUTCOMES.get(o, Verdict.UNPROVEN)), left=True),
    Column("seconds", "s", FIGURES), Column("count", "readings", "d"), _text("reason", "why", long=True),
    _text("fix", "what mends it", long=True),
)  # fmt: skip


def gpu_day_sections(day: GpuDay) -> list[Section]:
    """A section for each kind of reading that the day has."""
    steps = [(Facts(count=len(step.readings)), step) for step in day.steps]
    return [
        Section(
            "gpu-networks", "Networks on the GPU", "", _figures(day), _grid(day, NetworkRate, NETWORKS, "Networks")
        ),
        Section("gpu-operations", "Operations alone", grids=_grid(day, OperationRate, OPERATIONS, "Operations alone")),
        Section("gpu-copies", "Copies", grids=_grid(day, CopyRate, COPIES, "Copies between host and GPU")),
        Section("gpu-checks", "What was tried", grids=_grid(day, Check, CHECKS, "What was tried")),
        Section("gpu-facts", "The GPU", grids=_grid(day, Fact, FACTS, "What the GPU says of itself")),
        Section("gpu-steps", "Steps of the day", grids=(grid(STEPS, steps, "Steps, and what was not taken"),)),
    ]


def _grid(day: GpuDay, kind: type[Reading], columns: Sequence[Column], caption: str) -> tuple[Grid, ...]:
    readings = [reading for step in day.steps for reading in step.readings if isinstance(reading, kind)]
    rows = [(Facts(told=_told(reading)), reading) for reading in readings]
    return (grid(columns, rows, caption),) if rows else ()


def _told(reading: Reading) -> str:
    return reading.detail or reading.reason if isinstance(reading, Check) else ""


def _figures(day: GpuDay) -> tuple[Figure, ...]:
    """Images a second of VGG-16 over the batch size, a line for each way to run it."""
    rates = [rate for rate in networks(day) if rate.network == NETWORK]
    rows: list[dict[str, Any]] = [
        {
            "label": one_line(f"{rate.precision}, {rate.by}{', with copies' if rate.copies else ''}"),
            "batch": rate.batch,
            "images_per_second": rate.images_per_second,
            "p50_ms": rate.milliseconds,
            "run": "valid",
        }
        for rate in rates
    ]
    if not rows:
        return ()
    best = max(rates, key=lambda rate: rate.images_per_second)
    text = f"VGG-16, images a second over the batch size; the most: {figures(best.images_per_second)} at {best.batch}."
    names = {row["label"]: row["label"] for row in rows}
    return (Figure(text, drawn("throughput", rows, names=names)),)
