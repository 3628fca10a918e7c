"""Optuna's studies, one for each band of speed: what shape to try next, and whether a training pays to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from vggdeploy.fit.family import Family
from vggdeploy.fit.ladder import FACTOR
from vggdeploy.records.fit import FitTrial, Shape

_ASKED = 10  # times, until a network is new, and of its band's speed
_STARTUP = 4  # trials that are random, before the estimator has something to estimate from


@dataclass
class Studies:
    """``seed`` decides the choices, together with what was known when they were made. ``families``: those of the bands."""

    families: dict[int, Family]
    seed: int
    _studies: dict[int, Any] = field(default_factory=dict)

    def ask(self, band: int, trials: Iterable[FitTrial], refused: Callable[[Shape], bool]) -> tuple[Shape, Any]:
        """The next shape of a band, first those of `Family.first`; and Optuna's trial, for `goes_on` and `tell`."""
        family = self.families[band]
        tried = [trial for trial in trials if trial.band == band]
        study = self._study(band, [trial for trial in tried if trial.rungs])
        for shape in family.first(band)[len(tried) : len(tried) + 1]:
            study.enqueue_trial(family.parameters(shape))
        for _ in range(_ASKED):
            asked = study.ask()
            shape = family.suggest(asked)
            if not refused(shape):
                return shape, asked
            study.tell(asked, state=_pruned())
        study.enqueue_trial({"start": str(family.starts[0])})  # which every band can have
        asked = study.ask()
        return family.suggest(asked), asked

    def goes_on(self, asked: Any, trial: FitTrial) -> bool:
        """Whether a trial is among the best third of its band after so many rungs."""
        asked.report(trial.accuracy, FACTOR ** (len(trial.rungs) - 1))
        return not asked.should_prune()

    def tell(self, asked: Any, trial: FitTrial) -> None:
        """A trial is over."""
        study = self._studies[trial.band]
        if trial.complete:
            study.tell(asked, trial.accuracy)
        else:
            study.tell(asked, state=_pruned())

    def _study(self, band: int, before: list[FitTrial]) -> Any:
        if band not in self._studies:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            # Another seed after each trial: a fit that is resumed does not ask for what it has had.
            sampler = optuna.samplers.TPESampler(seed=self.seed + 1000 * band + len(before), n_startup_trials=_STARTUP)
            pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=FACTOR)
            self._studies[band] = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
            for trial in before:
                self._studies[band].add_trial(_known(self.families[band], trial))
        return self._studies[band]


def _pruned() -> Any:
    from optuna.trial import TrialState

    return TrialState.PRUNED


class _Recorder:
    """Stands in for an Optuna trial: answers with what was chosen, and keeps what it was chosen from."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.distributions: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        from optuna.distributions import CategoricalDistribution

        self.distributions[name] = CategoricalDistribution(choices)
        return self.values[name]

    def suggest_int(self, name: str, low: int, high: int) -> Any:
        from optuna.distributions import IntDistribution

        self.distributions[name] = IntDistribution(low, high)
        return self.values[name]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> Any:
        from optuna.distributions import FloatDistribution

        self.distributions[name] = FloatDistribution(low, high, log=log)
        return self.values[name]


def _known(family: Family, trial: FitTrial) -> Any:
    """A trial of before, as Optuna has it."""
    from optuna.trial import TrialState, create_trial

    recorder = _Recorder(family.parameters(trial.shape))
    family.suggest(recorder)
    return create_trial(
        params=recorder.values,
        distributions=recorder.distributions,
        intermediate_values={FACTOR**at: rung.hits / rung.samples for at, rung in enumerate(trial.rungs)},
        value=trial.accuracy,
        state=TrialState.COMPLETE if trial.complete else TrialState.PRUNED,
    )
