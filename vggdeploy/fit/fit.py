"""The fit: networks tried in the budget's time, the best of them exported and proven, and judged once on test images.

Optuna (Akiba et al. 2019) chooses shapes and ends the trainings that do not pay: its tree-structured Parzen estimator, and its
asynchronous successive halving (Li et al. 2018). Each band of speed is a study of its own, whose networks all take about the
same time, so that only accuracy has to be compared. Choices are made on validation images.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from pathlib import Path

from vggdeploy.bundle import MANIFEST_NAME
from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.data.sources import default_preprocess
from vggdeploy.errors import TargetError, UsageError, counted
from vggdeploy.fit import planner
from vggdeploy.fit.cluster import ClusterTrials
from vggdeploy.fit.family import BANDS, Family
from vggdeploy.fit.finish import Finish
from vggdeploy.fit.ladder import Ladder
from vggdeploy.fit.material import Material, Source, unpack
from vggdeploy.fit.starts import Starts
from vggdeploy.fit.state import FitRequest, FitState
from vggdeploy.fit.trials import Settings, Trials
from vggdeploy.fit.write import write_fit
from vggdeploy.records.fit import FitGoal, FitReport
from vggdeploy.search.goals import Budget
from vggdeploy.system.ending import GRACE, deferred, patience
from vggdeploy.system.files import check_replaceable, check_writable
from vggdeploy.system.optional import require
from vggdeploy.train.distill import check_teacher
from vggdeploy.train.environment import thread_count

_ENDING = "ending: the best so far is written; a second Ctrl-C ends at once, and --resume goes on"


def fit(
    data: str,
    output: Path,
    goal: FitGoal,
    budget: Budget,
    settings: Settings | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> FitReport:
    """Train, shrink and quantise networks for these pictures, and write the best one's bundle, its report and its page.

    Ctrl-C ends the trials, and later what can be left out; the best so far is written like the end of any fit.

    Args:
        data: see `vggdeploy.fit.material.Source`.
        output: the bundle to write; the page stands beside it.
        goal: where nothing reaches it, the best is written all the same, and the report says so.

    Raises:
        UsageError: ``output`` may not be replaced, or there is another fit, or none to resume.
        DataError, InputError: images that are missing, too few, or cannot be read.
        CheckpointError: a teacher of other classes or other images; a backbone that is no VGG, of other channels, or damaged.
        TargetError: the budget does not suffice for one training, by the speed that was measured; the least that does is named.
        ParityError: no network could be proven. Nothing is written.
        MissingDependencyError: Optuna is not installed.
    """
    settings = settings or Settings()
    began = time.monotonic()
    require("optuna", to="fit a network", extra="optimize")
    source = Source.parse(data, settings.teacher)
    check_replaceable(output, marker=MANIFEST_NAME, overwrite=overwrite)
    check_writable(output)
    material = Material.of(source.dataset, settings.data_dir, seed=settings.seed, on_progress=settings.on_progress)
    starts = Starts.of(material, source.teacher, settings.init)
    question = FitRequest(
        dataset=material.name,
        images=material.sha256,
        goal=goal,
        seed=settings.seed,
        teacher=read_checkpoint(source.teacher).weights_sha256 if source.teacher else "",
        init=starts.backbone.told.sha256 if starts.backbone else "",
    )
    family = _family(material, source.teacher, starts)
    state = FitState.begin(output, question, resume=resume, overwrite=overwrite)
    with ExitStack() as stack:
        stack.callback(state.claim.close)
        _check_answers(state, material)
        stack.callback(state.remove_if_empty)
        stack.enter_context(thread_count(settings.threads))
        # Ctrl-C ends the trials, and the best is still written; a second one ends the command.
        stack.enter_context(patience(interrupt=math.inf))
        training = settings.threads if settings.ray is None else settings.threads or 1
        ladder = Ladder(material, state.home, settings.seed, training, source.teacher, starts)
        run = (Trials if settings.ray is None else ClusterTrials)(material, family, ladder, state, goal, settings)
        end = began + budget.seconds if budget.seconds else math.inf
        interrupted = run.trials(end, budget)
        if not any(trial.rungs for trial in state.trials):
            raise TargetError(
                "the budget ended before one network was trained",
                f"give more time: --budget {_longer(budget)}, or fewer images",
            )
        finish = Finish(material, ladder, goal, settings.samples, settings.threads, settings.on_progress)
        finish.notes += _notes(run)
        order = planner.export_order(goal, state.trials, run.holds)
        ending = stack.enter_context(deferred(terminate=GRACE, interrupt=math.inf, note=_ENDING))
        run.asked = ending.asked
        won = finish.choose(order, run.yardstick(), end, ending.asked)
        interrupted = interrupted or ending.asked()
        if not interrupted:
            finish.measure_roof(won, end)
            finish.exponent = run.exponent(won.trial, end)
            interrupted = ending.asked()
        if (late := time.monotonic() - end) > 0:
            finish.notes.append(f"the budget was overrun by {late:.0f} s: an export and its proof cannot be cut short")
        finish.notes += state.told()
        report = write_fit(
            output, finish, won, run.yardstick(), state.trials, replace=overwrite,
            about={
                "source": data, "seed": settings.seed, "command": settings.command, "interrupted": interrupted,
                "budget_seconds": budget.seconds or 0.0,
                "seconds": round(state.standing.seconds + time.monotonic() - began - run.counted, 1),
            },
        )  # fmt: skip
        if report.reached and not interrupted:
            state.remove()
        else:
            state.end(report.seconds)
    return report


def _notes(run: Trials) -> list[str]:
    """What has to be known of how the networks were trained."""
    ladder, starts = run.ladder, run.starts
    notes = [run.told] if run.told else []
    if ladder.short():
        notes.append(
            f"the budget is short: the first training of a network showed {counted(ladder.shown(0), 'image')}, and with "
            "more time would have shown more"
        )
    if starts.left_out:
        notes.append(f"the teacher itself was not made narrower: {starts.left_out}")
    if starts.backbone:
        notes += starts.backbone.told.lines()
        if all(trial.band != BANDS for trial in run.state.trials):
            notes.append(
                "the backbone was not tried: it cannot keep the limits, or one training of it takes more than half of the "
                "time that was left; give a larger --budget"
            )
    return notes


def _check_answers(state: FitState, material: Material) -> None:
    """
    Raises:
        UsageError: what was kept is not of these images: it is damaged, or they were changed.
    """
    for trial in state.trials:
        for rung in trial.rungs:
            answers = unpack(rung.answers)
            if len(answers) != len(material.judged):
                raise UsageError(
                    f"{state.home} has {len(answers)} answers of trial {trial.number + 1}, and there are "
                    f"{len(material.judged)} validation images",
                    "start again: --force",
                )


def _longer(budget: Budget) -> str:
    return f"{max(1, round(3 * (budget.seconds or 60) / 60))}m"


def _family(material: Material, teacher: Path | None, starts: Starts) -> Family:
    if teacher is None:
        return Family.of(material.dataset)
    about = read_checkpoint(teacher)
    size = about.spec.image_size
    check_teacher(str(teacher), material.dataset.classes, default_preprocess(material.name, size))
    return Family.of(material.dataset, teacher_size=size, cut=starts.original is not None)
