"""The search: the fastest variant that keeps the accuracy that was asked for, of a network and all narrower ones.

Optuna (Akiba et al. 2019) chooses what to try: the multi-objective tree-structured Parzen estimator (Ozaki et al. 2020) on
the cost of a network and the accuracy it loses. Neither depends on a clock, so a seed repeats its choices; clocks decide
between the candidates that came of them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from vggdeploy.bundle import MANIFEST_NAME
from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.errors import TargetError, TrainingError, UsageError
from vggdeploy.model.layers import layers_of
from vggdeploy.optimize.optimize import checkpoint_in
from vggdeploy.optimize.steps.calibration import Int8Options
from vggdeploy.optimize.steps.structure import quantisation_aware_checkpoint
from vggdeploy.optimize.steps.widths import macs_of, widths_of, with_widths
from vggdeploy.optimize.tuning import Tuning, TuningJob
from vggdeploy.optimize.variants import StepContext
from vggdeploy.records import Candidate, Goal, Point, SearchReport, Trial
from vggdeploy.search.goals import Budget, check_goal, choose_widths, cost, front
from vggdeploy.search.report import nothing_holds, report_of, write_winner
from vggdeploy.search.state import SearchRequest, SearchState
from vggdeploy.search.trial import Original, SearchTarget, build_network, candidates, drop_of, prepare
from vggdeploy.system.ending import patience
from vggdeploy.system.files import check_replaceable, check_writable
from vggdeploy.system.optional import require
from vggdeploy.train.environment import thread_count
from vggdeploy.train.record import OnStep, TrainingStep
from vggdeploy.types import OnProgress, Precision, silent

# What every search looks at first: the network as it is, and a few that people would try.
# Small ones before large ones: where a small one is accurate enough, no larger one has to be trained.
FIRST = tuple(
    {"keep": keep, "hidden": hidden, "lr": 0.01, "teacher": 0.5}
    for keep, hidden in ((1.0, 1.0), (0.1, 0.0625), (0.05, 0.03), (0.25, 0.125), (0.5, 0.25))
)
_KEEP, _HIDDEN, _LR, _TEACHER = (0.01, 1.0), (0.01, 1.0), (0.003, 0.05), (0.0, 0.9)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to search. ``epochs`` of fine-tuning a trial; ``samples`` test images that each variant is proven on;
    ``command`` is the line that asked for it, for the report."""

    seed: int = 0
    epochs: int = 3
    dataset: str = ""
    data_dir: Path | None = None
    threads: int | None = None
    samples: int | None = 1000
    command: str = ""
    on_progress: OnProgress = silent
    on_trial: Callable[[Trial, list[Candidate]], None] = lambda trial, front: None


def search(
    source: str | os.PathLike[str],
    output: Path,
    goal: Goal,
    budget: Budget,
    settings: Settings | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> SearchReport:
    """Search, and write the winner's bundle: its variants that hold the goal, and the report with the front.

    Ctrl-C ends the search, and what was found so far is written like the end of any search; what it was at can be gone
    on with (``resume``), as after a kill.

    Args:
        source: a checkpoint, or a bundle, whose FP32 reference is taken.
        output: the bundle to write.

    Raises:
        BundleError: ``source`` is a slim bundle, which has no reference.
        UsageError: a goal that nothing can hold, or ``output`` may not be replaced.
        TargetError: nothing holds the goal; the closest candidates are named, and nothing is written.
        DataError: no data set is known, or its classes are not the model's.
        MissingDependencyError: Optuna or Torch-Pruning is not installed.
    """
    settings = settings or Settings()
    check_goal(goal)
    target = SearchTarget.parse(goal)
    require("optuna", to="search", extra="optimize")
    require("torch_pruning", to="search", extra="optimize")
    root = checkpoint_in(Path(source))
    checkpoint = read_checkpoint(root)
    check_replaceable(output, marker=MANIFEST_NAME, overwrite=overwrite)
    check_writable(output)
    question = SearchRequest(
        source_sha256=checkpoint.weights_sha256,
        goal=goal,
        seed=settings.seed,
        epochs=settings.epochs,
        dataset=settings.dataset or checkpoint.dataset,
    )
    state = SearchState.begin(output, question, resume=resume, overwrite=overwrite)
    work = StepContext(
        samples=settings.samples,
        data_dir=settings.data_dir,
        threads=settings.threads,
        on_progress=settings.on_progress,
        int8=Int8Options(data=settings.dataset, targets=(target.int8,)),
    )
    with ExitStack() as stack:
        stack.callback(state.claim.close)
        stack.callback(state.remove_if_empty)  # a slip, or a Ctrl-C before the first trial, leaves nothing to trip over
        stack.enter_context(thread_count(settings.threads))
        original = prepare(
            root,
            state.home,
            limit=goal.accuracy_drop,
            dataset=settings.dataset,
            data_dir=settings.data_dir,
            work=work,
            on_progress=settings.on_progress,
        )
        # Ctrl-C ends the trials, and the best is still written; a second one ends the command.
        stack.enter_context(patience(interrupt=math.inf))
        interrupted = _run(original, state, goal, target, budget, settings, work)
        report = report_of(root, output, original, state, target, interrupted=interrupted)
        report = msgspec.structs.replace(report, command=settings.command)
        if report.winner is None:
            raise nothing_holds(state, report)
        settings.on_progress(None, "the winner on the test split, which has decided nothing")
        report = write_winner(output, original, state, report, target, work, overwrite=overwrite)
    if not interrupted:
        state.remove()
    return report


def _run(
    original: Original,
    state: SearchState,
    goal: Goal,
    target: SearchTarget,
    budget: Budget,
    settings: Settings,
    work: StepContext,
) -> bool:
    """Trials until the budget is spent; whether Ctrl-C ended them."""
    study = _study(settings.seed)
    for trial in state.standing.trials:  # the same seed asks the same questions: what is known is answered at once
        asked, point = _ask(study)
        if point != trial.point:
            raise UsageError("this search was begun with another version of Optuna", "start again: --force")
        _tell(study, asked, trial)
    end = time.monotonic() + (budget.seconds or math.inf)
    try:
        while time.monotonic() < end and len(state.standing.trials) < (budget.trials or math.inf):
            asked, point = _ask(study)
            trial, found = _trial(original, state, goal, target, point, settings, work, end)
            _tell(study, asked, trial)
            state.add(trial, found)
            best = front(state.standing.candidates)
            state.drop_files({c.trial for c in best if not c.misses})
            settings.on_trial(trial, best)
    except _BudgetSpentError as error:
        settings.on_progress(None, f"{error.cause}: trial {len(state.standing.trials) + 1} is left out")
    except KeyboardInterrupt:
        if not state.holds:
            raise
        return True
    return False


class _BudgetSpentError(Exception):
    """The time is over while a network is fine-tuned that nothing depends on."""

    cause = "the budget is spent"


def _until(end: float, enough: Callable[[], bool]) -> OnStep:
    """Ends a training when the time is over, and what there is, is ``enough``."""

    def check(step: TrainingStep) -> None:
        if time.monotonic() > end and enough():
            raise _BudgetSpentError

    return check


def _study(seed: int) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=["minimize", "minimize"],
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=len(FIRST) + 3),
    )
    for point in FIRST:
        study.enqueue_trial(point)
    return study


def _ask(study: Any) -> tuple[Any, Point]:
    asked = study.ask()
    return asked, Point(
        keep=asked.suggest_float("keep", *_KEEP, log=True),
        hidden=asked.suggest_float("hidden", *_HIDDEN, log=True),
        lr=asked.suggest_float("lr", *_LR, log=True),
        teacher=asked.suggest_float("teacher", *_TEACHER),
    )


def _tell(study: Any, asked: Any, trial: Trial) -> None:
    from optuna.trial import TrialState

    if trial.drop is None:
        study.tell(asked, state=TrialState.PRUNED)
    else:
        study.tell(asked, [math.log(trial.cost), trial.drop.drop])


def _trial(
    original: Original,
    state: SearchState,
    goal: Goal,
    target: SearchTarget,
    point: Point,
    settings: Settings,
    work: StepContext,
    end: float,
) -> tuple[Trial, list[Candidate]]:
    """One network: what it costs is known before it is trained, and one that cannot win is not.

    Raises:
        _BudgetSpentError: its fine-tuning was not over at ``end``, and the goal is held without it.
    """
    started = time.monotonic()
    trial = _considered(original, state, goal, point)
    if trial.skipped:
        return trial, []
    number = trial.number
    settings.on_progress(
        None, f"trial {number + 1}: {trial.macs / macs_of(original.spec):.0%} of the multiply-accumulates"
    )
    teaches = point.teacher > 0
    job = TuningJob(
        tuning=Tuning(
            epochs=settings.epochs, lr=point.lr, seed=settings.seed, distill_weight=point.teacher,
            distill=str(original.checkpoint) if teaches else "",
        ),
        teacher=original.teacher if teaches else None, dataset=settings.dataset, data_dir=settings.data_dir,
        threads=settings.threads, overwrite=True, on_progress=settings.on_progress,
        on_step=_until(end, lambda: state.holds),
    )  # fmt: skip

    def variants(checkpoint: Path, place: Path) -> list[Candidate]:
        return candidates(original, checkpoint, place, goal, target, number, work, settings.on_progress)

    made, place = state.checkpoint(number), state.bundle(number)
    if trial.widths:
        try:
            drop = build_network(original, made, trial.widths, job).drop["validation"]
        except TrainingError as error:  # a learning rate that this network cannot bear; others can
            seconds = round(time.monotonic() - started, 1)
            return msgspec.structs.replace(trial, skipped=error.cause, seconds=seconds), []
    else:
        made = original.checkpoint
        drop = drop_of(original, original.bundle, original.bundle.manifest.variants[0], "validation", work)
    # No precision brings back what the network lost.
    found = variants(made, place) if drop.lower <= goal.accuracy_drop else []
    aware = False
    if drop.upper <= goal.accuracy_drop and settings.epochs and not _int8_holds(found, goal):
        settings.on_progress(None, "INT8 misses the goal: fine-tuning with its rounding")
        again, other = state.aware(state.checkpoint(number)), state.aware(place)
        enough = state.holds or any(not c.misses for c in found)
        try:
            step = quantisation_aware_checkpoint(made, again, job=replace(job, on_step=_until(end, lambda: enough)))
        except (TrainingError, _BudgetSpentError) as error:
            settings.on_progress(None, f"fine-tuning with INT8's rounding is left out: {error.cause}")
        else:
            better = variants(again, other)
            if aware := _int8_holds(better, goal):
                drop, found = step.drop["validation"], better
                state.replace(state.checkpoint(number), again)
                state.replace(place, other)
    seconds = round(time.monotonic() - started, 1)
    return msgspec.structs.replace(trial, drop=drop, quantisation_aware=aware, seconds=seconds), found


def _considered(original: Original, state: SearchState, goal: Goal, point: Point) -> Trial:
    """The network of a point, with its cost, and why it need not be made."""
    own = widths_of(original.spec)
    widths, skipped = {}, ""
    try:
        chosen = choose_widths(original.spec, original.sensitivity, point.keep, point.hidden)
        widths = {name: width for name, width in chosen.items() if width != own[name]}
    except TargetError as error:
        skipped = error.cause
    spec = with_widths(original.spec, widths)
    macs, parameters = macs_of(spec), sum(layer.parameters for layer in layers_of(spec))
    return Trial(
        number=len(state.standing.trials), point=point, widths=widths, macs=macs, parameters=parameters,
        cost=cost(macs, parameters), skipped=skipped or _beaten(state, goal, macs, parameters),
    )  # fmt: skip


def _int8_holds(found: Iterable[Candidate], goal: Goal) -> bool:
    """Whether INT8 keeps the accuracy: what else is asked for, no training can give."""
    return any(c.precision is Precision.INT8 and c.drop.upper <= goal.accuracy_drop for c in found)


def _beaten(state: SearchState, goal: Goal, macs: int, parameters: int) -> str:
    """Why a network need not be trained: one that computes no more and is no larger is accurate enough already."""
    trials = {t.number: t for t in state.standing.trials}
    for number in sorted({c.trial for c in state.standing.candidates if c.drop.upper <= goal.accuracy_drop}):
        known = trials[number]
        if known.macs <= macs and known.parameters <= parameters:
            return f"trial {number + 1} is smaller, and accurate enough"
    return ""
