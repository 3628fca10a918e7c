"""The search: the fastest variant that keeps the accuracy that was asked for, of a network and all narrower ones.

Optuna (Akiba et al. 2019) chooses what to try: the multi-objective tree-structured Parzen estimator (Ozaki et al. 2020) on
the cost of a network and the accuracy it loses. Neither depends on a clock, so a seed repeats its choices; clocks decide
between the candidates that came of them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vggdeploy.bundle import MANIFEST_NAME, Bundle, Measurement, Variant, update_bundle
from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.bundle.store import now
from vggdeploy.errors import TargetError, UsageError
from vggdeploy.files import atomic_directory, check_replaceable, check_writable, link_tree
from vggdeploy.machine import fingerprint, machine
from vggdeploy.model.layers import layers_of
from vggdeploy.optimize.channels import macs_of, widths_of, with_widths
from vggdeploy.optimize.goals import Budget, check_goal, choose_widths, closest, cost, front, winner
from vggdeploy.optional import require
from vggdeploy.pipeline.calibration import Int8Options
from vggdeploy.pipeline.prove import Stage, tool_versions
from vggdeploy.pipeline.search_state import Question, State
from vggdeploy.pipeline.search_target import Target
from vggdeploy.pipeline.search_trial import Bench, build_network, bundle_bytes, candidates, drop_of, prepare
from vggdeploy.pipeline.tuning import Job, Tuning
from vggdeploy.pipeline.variants import Work
from vggdeploy.records import Candidate, Goal, SearchReport, Trial, to_json
from vggdeploy.spec import ModelSpec
from vggdeploy.train.environment import thread_count

REPORT_NAME = "search.json"
# What every search looks at first: the network as it is, and a few that people would try.
FIRST = ((1.0, 1.0, 0.01), (0.5, 0.25, 0.01), (0.25, 0.125, 0.01), (0.1, 0.0625, 0.01), (0.05, 0.03, 0.01))
_KEEP, _HIDDEN, _LR = (0.01, 1.0), (0.01, 1.0), (0.003, 0.05)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to search. ``epochs`` of fine-tuning a trial; ``samples`` test images that each variant is proven on."""

    seed: int = 0
    epochs: int = 3
    dataset: str = ""
    data_dir: Path | None = None
    threads: int | None = None
    samples: int | None = 1000
    on_stage: Stage = lambda text: None
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

    Raises:
        UsageError: a goal that nothing can hold, or ``output`` may not be replaced.
        TargetError: nothing holds the goal; the closest candidates are named, and nothing is written.
        DataError: no data set is known, or its classes are not the model's.
        MissingDependencyError: Optuna or Torch-Pruning is not installed.
    """
    settings = settings or Settings()
    check_goal(goal)
    target = Target.parse(goal)
    require("optuna", to="search", extra="optimize")
    require("torch_pruning", to="search", extra="optimize")
    root = Path(source)
    checkpoint = read_checkpoint(root)
    check_replaceable(output, marker=MANIFEST_NAME, overwrite=overwrite)
    check_writable(output)
    question = Question(
        source_sha256=checkpoint.weights_sha256,
        goal=goal,
        seed=settings.seed,
        epochs=settings.epochs,
        dataset=settings.dataset or checkpoint.dataset,
    )
    state = State.begin(output, question, resume=resume, overwrite=overwrite)
    work = Work(
        samples=settings.samples,
        data_dir=settings.data_dir,
        threads=settings.threads,
        on_stage=settings.on_stage,
        int8=Int8Options(data=settings.dataset, targets=(target.int8,)),
    )
    with ExitStack() as stack:
        stack.enter_context(thread_count(settings.threads))
        bench = prepare(
            root,
            state.home,
            dataset=settings.dataset,
            data_dir=settings.data_dir,
            work=work,
            on_stage=settings.on_stage,
        )
        interrupted = _run(bench, state, goal, target, budget, settings, work)
        report = _report(root, output, bench, state, settings, target, interrupted)
        if report.winner is None:
            raise _nothing_holds(state, report)
        settings.on_stage("the winner on the test split, which has decided nothing")
        report = _write(output, bench, state, report, target, work, overwrite=overwrite)
    if not interrupted:
        state.remove()
    return report


def _run(
    bench: Bench, state: State, goal: Goal, target: Target, budget: Budget, settings: Settings, work: Work
) -> bool:
    """Trials until the budget is spent; whether Ctrl-C ended them."""
    study = _study(settings.seed)
    for trial in state.standing.trials:  # the same seed asks the same questions: what is known is answered at once
        asked, point = _ask(study)
        if point != (trial.keep, trial.hidden, trial.lr):
            raise UsageError("this search was begun with another version of Optuna", "start again: --force")
        _tell(study, asked, trial)
    end = time.monotonic() + (budget.seconds or math.inf)
    try:
        while time.monotonic() < end and len(state.standing.trials) < (budget.trials or math.inf):
            asked, point = _ask(study)
            trial, found = _trial(bench, state, goal, target, len(state.standing.trials), point, settings, work)
            _tell(study, asked, trial)
            state.add(trial, found)
            best = front(state.standing.candidates)
            state.drop_files({c.trial for c in best if not c.misses})
            settings.on_trial(trial, best)
    except KeyboardInterrupt:
        if not any(not c.misses for c in state.standing.candidates):
            raise
        return True
    return False


def _study(seed: int) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=["minimize", "minimize"],
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=len(FIRST) + 3),
    )
    for keep, hidden, lr in FIRST:
        study.enqueue_trial({"keep": keep, "hidden": hidden, "lr": lr})
    return study


def _ask(study: Any) -> tuple[Any, tuple[float, float, float]]:
    asked = study.ask()
    return asked, (
        asked.suggest_float("keep", *_KEEP, log=True),
        asked.suggest_float("hidden", *_HIDDEN, log=True),
        asked.suggest_float("lr", *_LR, log=True),
    )


def _tell(study: Any, asked: Any, trial: Trial) -> None:
    from optuna.trial import TrialState

    if trial.drop is None:
        study.tell(asked, state=TrialState.PRUNED)
    else:
        study.tell(asked, [math.log(trial.cost), trial.drop.drop])


def _trial(
    bench: Bench,
    state: State,
    goal: Goal,
    target: Target,
    number: int,
    point: tuple[float, float, float],
    settings: Settings,
    work: Work,
) -> tuple[Trial, list[Candidate]]:
    """One network: what it costs is known before it is trained, and one that cannot win is not."""
    started = time.monotonic()
    keep, hidden, lr = point
    own = widths_of(bench.spec)
    try:
        widths = {n: w for n, w in choose_widths(bench.spec, bench.sensitivity, keep, hidden).items() if w != own[n]}
    except TargetError as error:
        widths, skipped = {}, error.cause
    else:
        skipped = ""
    spec = with_widths(bench.spec, widths)
    parameters = _parameters(spec)
    about = Trial(
        number=number, keep=keep, hidden=hidden, lr=lr, widths=widths, macs=macs_of(spec), parameters=parameters,
        cost=cost(macs_of(spec), parameters), skipped=skipped or _beaten(state, goal, spec, parameters),
    )  # fmt: skip
    if about.skipped:
        return about, []
    settings.on_stage(f"trial {number + 1}: {about.macs / macs_of(bench.spec):.0%} of the multiply-accumulates")
    made = state.checkpoint(number)
    if widths:
        tuning = Tuning(epochs=settings.epochs, lr=lr, seed=settings.seed)
        job = Job(tuning=tuning, dataset=settings.dataset, data_dir=settings.data_dir, threads=settings.threads,
                  overwrite=True, on_stage=settings.on_stage)  # fmt: skip
        drop = build_network(bench, made, widths, job).drop["validation"]
    else:
        made = bench.checkpoint
        drop = drop_of(bench, bench.bundle, bench.bundle.manifest.variants[0], "validation", work)
    done = msgspec.structs.replace(about, drop=drop)
    found = []
    if drop.lower <= goal.accuracy_drop:  # else no precision will bring it back
        found = candidates(bench, made, state.bundle(number), goal, target, number, work, settings.on_stage)
    return msgspec.structs.replace(done, seconds=round(time.monotonic() - started, 1)), found


def _parameters(spec: ModelSpec) -> int:
    return sum(layer.parameters for layer in layers_of(spec))


def _beaten(state: State, goal: Goal, spec: ModelSpec, parameters: int) -> str:
    """Why a network need not be trained: one that computes no more and is no larger is accurate enough already."""
    trials = {t.number: t for t in state.standing.trials}
    for number in sorted({c.trial for c in state.standing.candidates if c.drop.upper <= goal.accuracy_drop}):
        known = trials[number]
        if known.macs <= macs_of(spec) and known.parameters <= parameters:
            return f"trial {number + 1} is smaller, and accurate enough"
    return ""


def _report(
    source: Path, output: Path, bench: Bench, state: State, settings: Settings, target: Target, interrupted: bool
) -> SearchReport:
    standing = state.standing
    best, chosen = front(standing.candidates), winner(standing.candidates)
    original = bench.bundle.manifest.variant("onnx-fp32")
    rows = [c.latency_ms * c.ratio for c in standing.candidates if c.latency_ms and c.ratio]
    return SearchReport(
        source=str(source),
        source_sha256=standing.question.source_sha256,
        bundle=str(output),
        created=now(),
        machine=machine(),
        goal=standing.question.goal,
        seed=settings.seed,
        epochs=settings.epochs,
        measured=target.measured,
        original_latency_ms=sorted(rows)[len(rows) // 2] if rows else None,
        original_bytes=bundle_bytes(bench.bundle, original),
        trials=standing.trials,
        front=tuple(best),
        winner=chosen.trial if chosen else None,
        chosen=chosen.variant if chosen else None,
        reason=_reason(chosen),
        interrupted=interrupted,
        tools=tool_versions(),
    )


def _reason(chosen: Candidate | None) -> str:
    if chosen is None:
        return "nothing holds the goal"
    if chosen.ratio is None:
        best = "costs the least of those that hold the goal"
        speed = f"{chosen.macs / 1e6:,.1f} million multiply-accumulates (ranked by these and by bytes: nothing was measured)"
    else:
        best = "is the fastest that holds the goal"
        speed = f"{chosen.ratio:.1f} × the original's speed [{chosen.ratio_low:.1f}, {chosen.ratio_high:.1f}]"
    return (
        f"{chosen.variant} of trial {chosen.trial + 1} {best}: {speed}, "
        f"{chosen.bytes / 1e6:.2f} MB, accuracy down by {100 * chosen.drop.drop:.2f} points, at most "
        f"{100 * chosen.drop.upper:.2f} at 95% confidence"
    )


def _nothing_holds(state: State, report: SearchReport) -> TargetError:
    near = closest(state.standing.candidates)
    texts = [f"{c.variant} of trial {c.trial + 1} misses: {', '.join(c.misses)}" for c in near]
    tried = sum(trial.drop is not None for trial in report.trials)
    return TargetError(
        f"none of {tried} networks holds the goal; closest: {'; '.join(texts) or 'no variant could be made'}",
        "allow more, or search longer: --resume with a larger --budget",
    )


def _write(
    output: Path, bench: Bench, state: State, report: SearchReport, target: Target, work: Work, *, overwrite: bool
) -> SearchReport:
    """The winner's bundle: without the variants that miss the goal, with what was measured, and with the report."""
    assert report.winner is not None  # noqa: S101  # the caller has looked
    made = state.bundle(report.winner)
    mine = {c.variant: c for c in state.standing.candidates if c.trial == report.winner}
    good = {name: c for name, c in mine.items() if not c.misses}
    bundle = Bundle.open(made)
    tested = {name: drop_of(bench, bundle, bundle.manifest.variant(name), "test", work) for name in good}
    report = msgspec.structs.replace(
        report,
        front=tuple(
            msgspec.structs.replace(c, test_drop=tested.get(c.variant)) if c.trial == report.winner else c
            for c in report.front
        ),
    )
    kept = [
        _with_speed(variant, good.get(variant.name))
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


def _with_speed(variant: Variant, here: Candidate | None) -> Variant:
    """The variant with what was measured of it, where ``backend="auto"`` finds it."""
    if here is None or here.latency_ms is None:
        return variant
    measured = Measurement(
        machine=fingerprint(), backend=here.backend, batch=1, threads=here.threads, p50_ms=here.latency_ms
    )
    return msgspec.structs.replace(variant, measured=(measured,))
