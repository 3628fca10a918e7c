"""Which speed is tried next, and what is exported first."""

from __future__ import annotations

import msgspec
import numpy as np
from test_fit_family import FAMILY, trial

from vggdeploy.fit.family import BANDS
from vggdeploy.fit.planner import export_order, holds, next_band
from vggdeploy.fit.studies import Studies
from vggdeploy.parity.metrics import paired_drop
from vggdeploy.records.fit import FitGoal, FitTrial, Start

ACCURACY, DROP, LATENCY = FitGoal(accuracy=0.9), FitGoal(accuracy_drop=0.01), FitGoal(latency_ms=1.0)
ALL = (0, 1, 2, 3, 4)
FAMILIES = dict.fromkeys(range(BANDS), FAMILY)


def test_the_first_is_the_middle_and_what_a_drop_counts_from_is_the_slowest() -> None:
    assert next_band([], ACCURACY, (), ALL) == 2
    assert next_band([], DROP, (), ALL) == 4
    assert next_band([], LATENCY, (), ALL) == 4
    assert next_band([], ACCURACY, (), ()) is None


def test_where_the_goal_holds_the_next_is_faster_and_where_not_slower() -> None:
    first = [trial(0, 1.0, 95, band=2)]
    assert next_band(first, ACCURACY, {0}, ALL) == 1
    assert next_band(first, ACCURACY, (), ALL) == 3
    assert next_band(first, ACCURACY, (), (0, 1, 2)) in (1, 2)


def test_every_fifth_trial_looks_where_nobody_has_looked() -> None:
    tried = [trial(at, 1.0, 95, band=2) for at in range(5)]
    assert next_band(tried, ACCURACY, {0}, ALL) == 4


def test_with_limits_alone_the_slowest_bands_that_keep_them_are_tried() -> None:
    tried = [trial(0, 1.0, 95, band=3)]
    assert next_band(tried, LATENCY, {0}, (0, 1, 2, 3)) == 2
    assert next_band([*tried, trial(1, 0.5, 94, band=2)], LATENCY, {0}, (0, 1, 2, 3)) in (2, 3)


def test_a_network_holds_by_the_bound_on_its_validation_images() -> None:
    one = trial(0, 1.0, 93)
    assert not holds(ACCURACY, one, np.arange(100) < 93, None)
    assert holds(ACCURACY, one, np.arange(10_000) < 9300, None)
    assert not holds(DROP, one, np.arange(100) < 93, paired_drop(np.arange(100) < 95, np.arange(100) < 93))


def test_what_holds_is_exported_first_and_the_fastest_of_it() -> None:
    trials = [trial(0, 3.0, 96), trial(1, 1.0, 80), trial(2, 2.0, 95), trial(3, 5.0, 0)]
    assert [t.number for t in export_order(ACCURACY, trials, lambda t: t.accuracy > 0.9)] == [2, 0, 1]
    limited = export_order(LATENCY, trials, lambda t: t.latency.ms <= 1)
    assert [t.number for t in limited] == [1, 0, 2]


def test_the_first_of_a_band_is_the_reference_and_what_was_tried_is_known_again() -> None:
    studies = Studies(FAMILIES, seed=3)
    shape, asked = studies.ask(2, (), lambda shape: False)
    assert shape == FAMILY.reference(2)
    done = msgspec.structs.replace(trial(0, 1.0, 90, band=2), shape=shape, complete=True)
    assert studies.goes_on(asked, done)
    studies.tell(asked, done)
    # A fit that was resumed knows the trial, and asks for another shape.
    again, _ = Studies(FAMILIES, seed=3).ask(2, [done], lambda shape: shape == FAMILY.reference(2))
    assert again != FAMILY.reference(2)


def test_a_network_that_is_among_the_worst_of_its_speed_is_not_trained_on() -> None:
    studies = Studies(FAMILIES, seed=0)
    ended = []
    for number, hits in enumerate((90, 80, 70, 60)):
        shape, asked = studies.ask(1, [trial(n, 1.0, 90, band=1) for n in range(number)], lambda shape: False)
        one = msgspec.structs.replace(trial(number, 1.0, hits, band=1), shape=shape)
        ended.append(not studies.goes_on(asked, one))
        studies.tell(asked, one)
    assert ended == [False, True, True, True]


def test_a_reference_that_failed_is_not_tried_again() -> None:
    studies, shapes = Studies(FAMILIES, seed=0), []
    failed: list[FitTrial] = []
    for number in range(3):
        tried = [one.shape for one in failed]
        shape, asked = studies.ask(2, failed, lambda shape, tried=tried: shape in tried)  # type: ignore[misc]
        one = msgspec.structs.replace(trial(number, 1.0, 0, band=2), shape=shape, ended="the loss became infinite")
        studies.tell(asked, one)
        failed.append(one)
        shapes.append(shape)
    assert shapes[0] == FAMILY.reference(2)
    assert FAMILY.reference(2) not in shapes[1:]
    # Nor by a fit that is resumed.
    again, _ = Studies(FAMILIES, seed=0).ask(2, failed, lambda shape: False)
    assert again != FAMILY.reference(2)


def test_a_teacher_that_cannot_be_as_fast_as_a_band_is_not_tried_in_it() -> None:
    family = FAMILY.on(32, Start.FRESH, Start.PRUNED)
    asked = Studies({0: family}, seed=0)
    tried: list[FitTrial] = []
    for number in range(8):
        shape, optunas = asked.ask(0, tried, lambda shape: shape.start is Start.PRUNED)
        assert shape.start is Start.FRESH
        tried.append(msgspec.structs.replace(trial(number, 1.0, 90, band=0), shape=shape, complete=True))
        asked.tell(optunas, tried[-1])
    assert asked.ask(0, tried, lambda shape: True)[0].start is Start.FRESH  # nothing new is left: still none of those
    both = [Studies({0: family}, seed=0).ask(0, tried[:count], lambda shape: False)[0].start for count in (0, 1)]
    assert both == [Start.FRESH, Start.PRUNED]
