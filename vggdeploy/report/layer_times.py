"""What each kernel of a variant takes, from ``vggdeploy bench --profile-layers``: columns, pictures and sentences."""

from __future__ import annotations

from typing import Any

from vggdeploy.errors import one_line
from vggdeploy.records.profile import KernelRow, VariantProfile
from vggdeploy.report.tables import Column, Facts, Grid, Row, grid

COLUMNS = (
    Column("index", "#", "d"),
    Column("layers", "layers", " + ".join, left=True),
    Column("ms", "ms", ",.3f"),
    Column("share", "of the kernels", ".1%"),
    Column("kind", "kind", left=True),
    Column("kernel", "kernel", left=True, wide=True),
)


def rows(profile: VariantProfile) -> list[Row]:
    """The kernels in the order of execution."""
    whole = sum(kernel.ms for kernel in profile.kernels)
    return [
        (Facts(index=number, share=kernel.ms / whole if whole else None), kernel)
        for number, kernel in enumerate(profile.kernels, 1)
    ]


def table(profile: VariantProfile, name: str) -> Grid:
    return grid(COLUMNS, rows(profile), f"{name}, batch {profile.batch}: what each kernel takes")


def bars(profile: VariantProfile) -> list[dict[str, Any]]:
    """The rows of `vggdeploy.report.charts.bars`; numbered, since layers come more than once."""
    return [
        {"label": f"{number} {one_line(_name(kernel))}", "value": kernel.ms, "told": f"{kernel.ms:.3f}"}
        for number, kernel in enumerate(profile.kernels, 1)
    ]


def sentence(profile: VariantProfile) -> str:
    """The kernel that takes longest."""
    slowest = max(profile.kernels, key=lambda kernel: kernel.ms)
    return f"Milliseconds of each kernel as they run; the slowest: {one_line(_name(slowest))}, {slowest.ms:.3f}."


def notes(profile: VariantProfile) -> tuple[str, ...]:
    """The sum beside the whole call and beside a call that nothing timed; then what makes the numbers doubtful."""
    sums = (
        f"kernels {profile.kernels_ms:.3f} ms + overhead {profile.overhead_ms:.3f} ms of a call of "
        f"{profile.call_ms:.3f} ms (medians of {profile.calls} calls); without the timing a call takes "
        f"{profile.plain_ms:.3f} ms"
    )
    unnamed = (f"no layers are named: {profile.unnamed}",) if profile.unnamed else ()
    return (sums, *unnamed, *profile.reasons)


def _name(kernel: KernelRow) -> str:
    """The layers of a kernel; of one that computes none, its own name."""
    return " + ".join(kernel.layers) or kernel.kernel
