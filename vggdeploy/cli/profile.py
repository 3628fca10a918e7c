"""``vggdeploy bench --profile-layers``: where the time of a batch goes, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggdeploy.cli import render
from vggdeploy.cli.render import escape

if TYPE_CHECKING:
    from vggdeploy.bench.run import BenchPlan
    from vggdeploy.bundle import Bundle
    from vggdeploy.records.profile import ProfileReport


def run_profile(bundle: Bundle, plan: BenchPlan, *, threads: int | None, json: bool) -> int:
    """Measure, print, and return the exit code: 3 for a wrong output."""
    from vggdeploy.bench.profile import profile_layers
    from vggdeploy.cli.options import with_command
    from vggdeploy.types import Verdict

    with render.progress("timing") as tell:
        report = with_command(profile_layers(bundle, plan, threads=threads, on_progress=tell))
    if json:
        render.emit_json(report)
    else:
        show_profile(report)
    return 3 if any(profile.verdict is Verdict.FAIL for profile in report.profiles) else 0


def show_profile(report: ProfileReport) -> None:
    """A table for each variant and batch size, its sum, and what is not the kernels'."""
    from vggdeploy.report import layer_times

    for profile in report.profiles:
        render.table(layer_times.table(profile, profile.variant))
        for text in layer_times.notes(profile):
            render.sentence(escape(text), "· ")
