"""What a fit leaves: the winner's bundle with its report, and the page beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vggdeploy.bundle import MANIFEST_NAME, Bundle, Measurement, update_bundle
from vggdeploy.bundle.store import now
from vggdeploy.errors import MissingDependencyError, UsageError, counted
from vggdeploy.fit.advice import images_advice, more_time
from vggdeploy.fit.family import frontier
from vggdeploy.fit.finish import Finish, Yardstick
from vggdeploy.fit.goal import goal_words
from vggdeploy.fit.ladder import RECIPE
from vggdeploy.fit.material import Material, unpack
from vggdeploy.records import AccuracyDrop, ParityReport, to_json
from vggdeploy.records.evaluation import Rate
from vggdeploy.records.fit import FitGoal, FitReport, FitTrial, FitVariant
from vggdeploy.report.write import write_report
from vggdeploy.system.files import atomic_directory, link_tree
from vggdeploy.system.machine import fingerprint, machine
from vggdeploy.types import Verdict
from vggdeploy.verify.prove import tool_versions

REPORT_NAME, EVALUATION_NAME, PROOF_NAME = "fit.json", "evaluation.json", "proof.json"


def write_fit(
    output: Path,
    finish: Finish,
    won: FitVariant,
    yardstick: Yardstick | None,
    trials: Sequence[FitTrial],
    *,
    replace: bool,
    about: Mapping[str, Any],
) -> FitReport:
    """Judge the winner, write its bundle in one step, and its page beside it.

    Args:
        about: the fields of the report that the caller knows.
    """
    evaluation = finish.judge(won)
    drop = finish.test_drop(won, yardstick) if yardstick is not None else None
    material, winner = finish.material, next(trial for trial in trials if trial.number == won.trial)
    reached = not won.misses and _reached(finish.goal, evaluation.accuracy, drop)
    training = np.bincount(material.labels[material.parts[0][0]], minlength=len(material.dataset.classes))
    report = FitReport(
        **about,
        bundle=str(output),
        created=now(),
        machine=machine(),
        goal=finish.goal,
        recipe=RECIPE,
        images={
            "train": material.training,
            "validation": len(material.judged),
            "test": material.test,
            "duplicates": material.duplicates,
        },
        classes=material.dataset.classes,
        folds=len(material.parts),
        trials=tuple(map(_without_answers, trials)),
        frontier=tuple(trial.number for trial in frontier(trials)),
        variants=tuple(finish.variants),
        winner=won,
        test=evaluation.accuracy,
        test_drop=drop,
        roof=finish.roof,
        reached=reached,
        reason=reason_of(finish.goal, won, evaluation.accuracy, drop, reached=reached),
        more_time=more_time(winner, len(trials)),
        advice=images_advice(
            unpack(winner.rungs[-1].answers),
            material.labels[material.judged],
            material.dataset.classes,
            training.tolist(),
            finish.exponent,
        ),
        notes=(*_notes(material, won, yardstick), *finish.notes),
        tools=tool_versions(),
    )
    made = finish.bundles[won.trial]
    measured = Measurement(
        machine=fingerprint(), backend=won.backend, batch=1, threads=won.threads, p50_ms=won.latency_ms
    )
    with update_bundle(made) as draft:
        draft.write(REPORT_NAME, to_json(report))
        draft.write(EVALUATION_NAME, to_json(msgspec.structs.replace(evaluation, target=str(output))))
        draft.write(PROOF_NAME, to_json(_proof(made, output)))
        chosen = msgspec.structs.replace(made.manifest.variant(won.variant), measured=(measured,))
        draft.manifest = msgspec.structs.replace(made.manifest, name=output.name).with_variants(chosen)
    with atomic_directory(output, marker=MANIFEST_NAME, overwrite=replace) as place:
        link_tree(made.root, place)
    return report


def page_of(output: Path) -> Path:
    """Where the page of a fit stands."""
    return output.with_name(f"{output.name}.html")


def check_page(output: Path, *, overwrite: bool) -> None:
    """
    Raises:
        UsageError: something stands where the page belongs, and may not be replaced.
    """
    page = page_of(output)
    if page.exists() and not page.is_file():
        raise UsageError(f"{page} is not a regular file, and the fit's page belongs there", "choose another output")
    if page.exists() and not overwrite:
        raise UsageError(
            f"{page} already exists, and the fit's page belongs there",
            "add --force to replace it, or choose another output",
        )


def write_page(output: Path) -> Path | None:
    """The page of a fit beside its bundle; None where Altair is not installed."""
    page = page_of(output)
    try:
        sources = [output / name for name in (REPORT_NAME, PROOF_NAME, EVALUATION_NAME)]
        write_report(sources, page, title=f"The network for {output.name}")
    except MissingDependencyError:
        return None
    return page


def _proof(bundle: Bundle, output: Path) -> ParityReport:
    """What was proven of each variant, as the page shows it."""
    found = tuple(variant.parity for variant in bundle.manifest.variants if variant.parity is not None)
    return ParityReport(bundle=str(output), created=now(), variants=found)


def _without_answers(trial: FitTrial) -> FitTrial:
    rungs = tuple(msgspec.structs.replace(rung, answers="") for rung in trial.rungs)
    return msgspec.structs.replace(trial, rungs=rungs)


def _reached(goal: FitGoal, test: Rate, drop: AccuracyDrop | None) -> bool:
    """Whether the test images bear out what the validation images promised."""
    accurate = goal.accuracy is None or test.rate >= goal.accuracy
    return accurate and (goal.accuracy_drop is None or drop is None or drop.drop <= goal.accuracy_drop)


def reason_of(goal: FitGoal, won: FitVariant, test: Rate, drop: AccuracyDrop | None, *, reached: bool) -> str:
    """The result in a sentence."""
    kind = "the fastest" if goal.asks_accuracy else "the most accurate"
    best = f"is {kind} that holds the goal" if reached else "is the closest to the goal, which it misses"
    lost = f", {100 * drop.drop:+z.2f} points lost there" if drop is not None else ""
    missed = "".join(f"; it misses: {text}" for text in won.misses)
    if not reached and not won.misses:
        missed = "; it held on the validation images, and misses on the test images"
    return (
        f"{won.variant} of trial {won.trial + 1} {best} ({goal_words(goal)}): {won.latency_ms:.3g} ms, "
        f"{won.bytes / 1e3:,.1f} kB, {test.rate:.2%} right of {test.samples:,} test images, 95% interval "
        f"{test.lower:.2%} to {test.upper:.2%}{lost}{missed}"
    )


def _notes(material: Material, won: FitVariant, yardstick: Yardstick | None) -> list[str]:
    notes = []
    if won.verdict is not Verdict.PASS:
        notes.append(
            f"the proof of {won.variant} is {won.verdict}: its outputs are those of the network that was trained, and too few "
            "test images were looked at to bound how many answers change"
        )
    if material.duplicates:
        notes.append(
            f"left out of training and validation: {counted(material.duplicates, 'image')}, equal to test images"
        )
    if material.repeated:
        notes.append(
            f"copies of others among the {material.test:,} test images: {material.repeated:,}; the interval is narrower than "
            "that of as many different ones"
        )
    if material.contradictions:
        notes.append(f"in more than one class: {counted(material.contradictions, 'picture')}")
    if len(material.parts) > 1:
        notes.append(
            f"few images: accuracy was judged by a cross-validation of {len(material.parts)} folds, and the network that "
            "ships was trained without the first of them. Its files were run on that fold, and what INT8 and BF16 lose is "
            "known from its images alone"
        )
    if yardstick is not None and yardstick.counted is not None and won.drop is not None:
        notes.append(
            f"the drop below the teacher was judged on {counted(won.drop.samples, 'image')}: the others may have trained the "
            "teacher"
        )
    return notes
