"""What a search ends with: its report, and the winner's bundle."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from vggdeploy.bench.roof import measure_roofs, share_of_roof
from vggdeploy.bundle import MANIFEST_NAME, Bundle, Measurement, Variant, update_bundle
from vggdeploy.bundle.store import now
from vggdeploy.errors import TargetError
from vggdeploy.optimize.variants import StepContext
from vggdeploy.records import Candidate, CpuRoof, SearchReport, to_json
from vggdeploy.search.goals import closest, front, winner
from vggdeploy.search.state import SearchState
from vggdeploy.search.trial import ORIGINAL, Original, SearchTarget, drop_of
from vggdeploy.system.files import atomic_directory, link_tree
from vggdeploy.system.machine import fingerprint, machine, usable_cores
from vggdeploy.verify.prove import tool_versions

REPORT_NAME = "search.json"


def report_of(
    source: Path, output: Path, original: Original, state: SearchState, target: SearchTarget, *, interrupted: bool
) -> SearchReport:
    """All that the search found, with the winner in words. Where clocks decided, the roof of the CPUs stands beside."""
    standing = state.standing
    best, chosen = front(standing.candidates), winner(standing.candidates)
    roofs = measure_roofs(max(c.threads for c in standing.candidates)) if chosen and target.measured else ()
    if chosen and chosen not in best:  # one that misses the goal may beat it in everything but the bound
        best.append(chosen)
    best = [_under_roof(one, roofs) for one in best]
    plain = original.bundle.manifest.variant(ORIGINAL)
    rows = [c.latency_ms * c.ratio for c in standing.candidates if c.latency_ms and c.ratio]
    return SearchReport(
        source=str(source),
        source_sha256=standing.question.source_sha256,
        bundle=str(output),
        created=now(),
        machine=machine(),
        goal=standing.question.goal,
        seed=standing.question.seed,
        epochs=standing.question.epochs,
        measured=target.measured,
        original_latency_ms=sorted(rows)[len(rows) // 2] if rows else None,
        original_bytes=original.bundle.size(plain),
        trials=standing.trials,
        front=tuple(best),
        winner=chosen.trial if chosen else None,
        chosen=chosen.variant if chosen else None,
        reason=_reason(_under_roof(chosen, roofs) if chosen else None),
        interrupted=interrupted,
        roofs=roofs,
        tools=tool_versions(),
    )


def _under_roof(one: Candidate, roofs: Iterable[CpuRoof]) -> Candidate:
    """The candidate with the share of the roof that it reaches."""
    if one.latency_ms is None:
        return one
    reached = 2 * one.macs / one.latency_ms / 1e9
    return msgspec.structs.replace(one, tera_ops=reached, roof_share=share_of_roof(reached, one.precision, roofs))


def _reason(chosen: Candidate | None) -> str:
    if chosen is None:
        return "nothing holds the goal"
    if chosen.ratio is None:
        best = "costs the least of those that hold the goal"
        speed = f"{chosen.macs / 1e6:,.1f} million multiply-accumulates (ranked by these and by bytes: nothing was measured)"
    else:
        best = "is the fastest that holds the goal"
        speed = f"{chosen.ratio:.1f} × the original's speed [{chosen.ratio_low:.1f}, {chosen.ratio_high:.1f}]"
    fewer = bool(chosen.threads) and chosen.threads < usable_cores()
    threads = f" with {chosen.threads} thread{'s' * (chosen.threads > 1)}" if fewer else ""
    roof = ""
    if chosen.tera_ops and chosen.roof_share:
        reached = f"{chosen.tera_ops:,.3f} TOP/s"
        roof = f"; {reached}, {chosen.roof_share:.0%} of what these CPUs can in {chosen.precision.upper()}"
    return (
        f"{chosen.variant} of trial {chosen.trial + 1} {best}: {speed}{threads}, "
        f"{chosen.bytes / 1e6:.2f} MB, accuracy down by {100 * chosen.drop.drop:.2f} points, at most "
        f"{100 * chosen.drop.upper:.2f} at one-sided 95% confidence{roof}"
    )


def nothing_holds(state: SearchState, report: SearchReport) -> TargetError:
    near = closest(state.standing.candidates)
    texts = [f"{c.variant} of trial {c.trial + 1} misses: {', '.join(c.misses)}" for c in near]
    tried = sum(trial.drop is not None for trial in report.trials)
    return TargetError(
        f"none of {tried} networks holds the goal; closest: {'; '.join(texts) or 'no variant could be made'}",
        "allow more, or search longer: --resume with a larger --budget",
    )


def write_winner(
    output: Path,
    original: Original,
    state: SearchState,
    report: SearchReport,
    target: SearchTarget,
    work: StepContext,
    *,
    overwrite: bool,
) -> SearchReport:
    """The winner's bundle: without the variants that miss the goal, with what was measured, and with the report."""
    assert report.winner is not None  # noqa: S101  # the caller has looked
    made = state.bundle(report.winner)
    mine = {c.variant: c for c in state.standing.candidates if c.trial == report.winner}
    good = {name: c for name, c in mine.items() if not c.misses}
    bundle = Bundle.open(made)
    tested = {name: drop_of(original, bundle, bundle.manifest.variant(name), "test", work) for name in good}
    report = msgspec.structs.replace(
        report,
        front=tuple(
            msgspec.structs.replace(c, test_drop=tested.get(c.variant)) if c.trial == report.winner else c
            for c in report.front
        ),
    )
    kept = [
        _with_speed(variant, good.get(variant.name), report.original_latency_ms)
        for variant in bundle.manifest.variants
        if variant.name not in mine or variant.name in good
    ]
    with update_bundle(bundle) as draft:
        draft.write(REPORT_NAME, to_json(report))
        draft.manifest = msgspec.structs.replace(bundle.manifest, name=output.name, variants=tuple(kept))
    target.build(Bundle.open(made), str(report.chosen))
    with atomic_directory(output, marker=MANIFEST_NAME, overwrite=overwrite) as place:
        link_tree(made, place)
    return report


def _with_speed(variant: Variant, here: Candidate | None, original_ms: float | None) -> Variant:
    """The variant with what was measured of it, where ``backend="auto"`` finds it.

    That is the original's time over the ratio that ranked it, so what is loaded is what won, whatever the machine did
    between two turns.
    """
    if here is None or here.ratio is None or original_ms is None:
        return variant
    measured = Measurement(
        machine=fingerprint(), backend=here.backend, batch=1, threads=here.threads, p50_ms=original_ms / here.ratio
    )
    return msgspec.structs.replace(variant, measured=(measured,))
