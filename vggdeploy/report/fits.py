"""What a report tells of a fit: the network to take, all that were tried in a picture and a table, and what would help."""

from __future__ import annotations

from typing import Any

from vggdeploy.errors import counted, one_line
from vggdeploy.records.fit import FitOpponent, FitReport, FitTrial, Start
from vggdeploy.report.documents import Results
from vggdeploy.report.parts import Figure, Section, drawn
from vggdeploy.report.tables import FIGURES, ONE_IMAGE, Column, Facts, Grid, grid

NETWORKS = (
    Column("number", "trial", lambda number: str(number + 1)),
    Column("note", "note", left=True),
    Column("latency.ms", ONE_IMAGE, FIGURES),
    Column("accuracy", "validation", ".2%"),
    Column("macs", "million MACs", FIGURES, scale=1e-6),
    Column("parameters", "thousand weights", FIGURES, scale=1e-3),
    Column("shape.image_size", "pixels", "d"),
    Column("network", "blocks", left=True, wide=True),
    Column("shape.start", "begins", left=True),
    Column("head", "head", left=True, wide=True),
    Column("epochs", "epochs", "d", wide=True),
    Column("seconds", "seconds", FIGURES, wide=True),
    Column("ended", "ended early", left=True, long=True, wide=True),
)
FILES = (
    Column("variant", "variant", left=True),
    Column("trial", "trial", lambda trial: str(trial + 1)),
    Column("note", "note", left=True),
    Column("latency_ms", ONE_IMAGE, FIGURES),
    Column("threads", "threads", "d"),
    Column("bytes", "size kB", FIGURES, scale=1e-3),
    Column("validation.rate", "validation", ".2%"),
    Column("drop.drop", "points lost", "+z.2f", scale=100),
    Column("drop.upper", "at worst", "+z.2f", scale=100),
    Column("verdict", "proof", left=True),
    Column("misses", "misses", "; ".join, left=True, long=True),
)


OPPONENTS = (
    Column("name", "made by", left=True),
    Column("latency_ms", ONE_IMAGE, FIGURES),
    Column("threads", "threads", "d"),
    Column("ratio", "the winner is", lambda ratio: f"{ratio:.2f} × as fast"),
    Column("interval", "95% interval", left=True),
    Column("test.rate", "test", ".2%"),
    Column("between", "95% interval", left=True, wide=True),
    Column("bytes", "size kB", FIGURES, scale=1e-3),
    Column("seconds", "training s", FIGURES, wide=True),
)


def sections_of(results: Results) -> list[Section]:
    """A section for each fit; none where there is none."""
    return [_section(report) for report in results.fits]


def _section(report: FitReport) -> Section:
    rows = points(report)
    text = (
        f"Each of the {len(rows)} networks that were trained, by the time of one image and by accuracy on validation images. "
        "What no other beats in both is joined by the line."
    )
    figures_ = [Figure(text, drawn("frontier", rows))] if rows else []
    grids = [networks(report), files(report)]
    if report.opponents:
        beside = (
            f"The winner beside {len(report.opponents) - 1} others made of the same images, each in the same time: the time of "
            "one image, and accuracy on test images with its 95% interval."
        )
        figures_.append(Figure(beside, drawn("beside", rivals(report)), "Beside what others make"))
        grids.append(opponents(report))
    notes = (report.more_time, *report.advice, *roof_words(report), cost_words(report), *report.notes)
    return Section(
        "fit", "The networks that were tried", one_line(report.reason[:1].upper() + report.reason[1:]) + ".",
        tuple(figures_), tuple(grids), notes=tuple(one_line(note) for note in notes if note),
    )  # fmt: skip


def points(report: FitReport) -> list[dict[str, Any]]:
    """Rows of the picture."""
    return [
        {
            "label": f"trial {trial.number + 1}",
            "ms": trial.latency.ms,
            "accuracy": trial.accuracy,
            "network": network(trial),
            "kind": _kind(report, trial),
            "front": trial.number in report.frontier,
        }
        for trial in report.trials
        if trial.rungs and trial.latency.ms > 0
    ]


def _kind(report: FitReport, trial: FitTrial) -> str:
    if trial.number == report.winner.trial:
        return "winner"
    return "frontier" if trial.number in report.frontier else "beaten"


def network(trial: FitTrial) -> str:
    """Blocks as people write them, ``16 · 32,32``, and the image size."""
    blocks = " · ".join(",".join(map(str, block)) for block in trial.spec.blocks)
    return f"{blocks} at {trial.spec.image_size} px"


def networks(report: FitReport) -> Grid:
    """All trials, the frontier first."""
    place = {number: at for at, number in enumerate(report.frontier)}
    trials = sorted(report.trials, key=lambda t: (place.get(t.number, len(place)), t.latency.ms))
    rows = [
        (
            Facts(
                note=_kind(report, trial) if trial.rungs else "not trained",
                network=" · ".join(",".join(map(str, block)) for block in trial.spec.blocks),
                head=trial.shape.head if trial.shape.start is Start.FRESH else trial.spec.head_pool,
                epochs=sum(rung.epochs for rung in trial.rungs),
                seconds=sum(rung.seconds for rung in trial.rungs),
            ),
            trial,
        )
        for trial in trials
    ]
    return grid(NETWORKS, rows, "Every network")


def files(report: FitReport) -> Grid:
    """The files of the networks that were exported."""
    ordered = sorted(report.variants, key=lambda one: (one.trial != report.winner.trial, one.trial, one.latency_ms))
    rows = [(Facts(note="ships" if one == report.winner else ""), one) for one in ordered]
    return grid(FILES, rows, "The files that were made and proven")


def rivals(report: FitReport) -> list[dict[str, Any]]:
    """Rows of the picture of the opponents."""
    return [
        {
            "label": one.name,
            "ms": one.latency_ms,
            "accuracy": one.test.rate,
            "lower": one.test.lower,
            "upper": one.test.upper,
            "ours": one.ours,
        }
        for one in report.opponents
    ]


def opponents(report: FitReport) -> Grid:
    """What others made, the fastest first."""

    def about(one: FitOpponent) -> Facts:
        return Facts(
            interval=f"{one.ratio_low:.2f} to {one.ratio_high:.2f}",
            between=f"{one.test.lower:.2%} to {one.test.upper:.2%}",
        )

    rows = [(about(one), one) for one in sorted(report.opponents, key=lambda one: one.latency_ms)]
    return grid(OPPONENTS, rows, "Beside what others make")


def roof_words(report: FitReport) -> tuple[str, ...]:
    """The winner's share of the machine's roof, and what keeps it from more; nothing where it was not measured."""
    roof = report.roof
    if roof is None:
        return ()
    precision = report.winner.precision.upper()
    shares = {precision: roof.share, "INT8": roof.int8_share}
    told = " and ".join(
        f"{share:.1%} of what these CPUs can in {name}" for name, share in shares.items() if share is not None
    )
    return (f"It multiplies {roof.tera_ops:,.3g} TOP/s{f': {told}' if told else ''}.", *roof.limits)


def cost_words(report: FitReport) -> str:
    """What it cost, in a sentence."""
    images = report.images
    budget = f" of a budget of {report.budget_seconds / 60:,.3g} min" if report.budget_seconds else ""
    judged = f"{images.get('validation', 0):,} validated"
    if report.folds > 1:
        judged += f" in a cross-validation of {report.folds} folds"
    return (
        f"It took {report.seconds / 60:,.3g} min{budget} on {report.machine.cpu} with {report.machine.cores} cores: "
        f"{len(report.trials)} networks, {counted(images.get('train', 0), 'image')} to train, {judged}, "
        f"{images.get('test', 0):,} to test; recipe {report.recipe}, seed {report.seed}"
    )
