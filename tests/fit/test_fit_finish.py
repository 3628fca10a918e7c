"""What ships is measured twice: what one lucky measurement has chosen does not win by it."""

from __future__ import annotations

import math
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vggdeploy.errors import IncompatibleError, ParityError
from vggdeploy.fit.finish import Finish
from vggdeploy.fit.goal import rate_of
from vggdeploy.fit.ladder import Ladder
from vggdeploy.fit.material import Material
from vggdeploy.records.fit import FitGoal, FitVariant
from vggdeploy.search.trial import Speed
from vggdeploy.types import Precision, Verdict, silent


def made(trial: int, name: str, ms: float, *, right: int = 95, misses: tuple[str, ...] = ()) -> FitVariant:
    return FitVariant(
        trial=trial, variant=name, backend="onnxruntime", precision=Precision.FP32, threads=1, latency_ms=ms, bytes=1000,
        validation=rate_of(right, 100), verdict=Verdict.PASS, misses=misses,
    )  # fmt: skip


def finished(goal: FitGoal, tmp_path: Path, *found: FitVariant) -> Finish:
    material = Material.of("digits", None, seed=0, on_progress=silent)
    finish = Finish(material, Ladder(material, tmp_path, 0, 1), goal, 10, 1, silent)
    finish.variants = list(found)
    finish.bundles = {one.trial: one for one in found}  # type: ignore[misc]  # what is measured of them is given below
    finish._judged = {(one.trial, one.variant): np.arange(100) < 100 * one.validation.rate for one in found}
    return finish


def measured(times: dict[str, float], monkeypatch: pytest.MonkeyPatch, finish: Finish) -> list[str]:
    """The second measurements, in their order."""
    asked: list[str] = []

    def speeds(bundle: object, variant: str, counts: tuple[int, ...]) -> dict[str, Speed]:
        asked.append(variant)
        return {variant: Speed(counts[0], times[variant], 1.0, 1.0, 1.0)}

    monkeypatch.setattr(finish, "_speeds", speeds)
    return asked


def test_a_winner_that_is_slower_the_second_time_loses_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = finished(FitGoal(accuracy=0.8), tmp_path, made(0, "lucky", 1.0), made(0, "steady", 1.2))
    asked = measured({"lucky": 1.5, "steady": 1.3}, monkeypatch, finish)
    won = finish._confirmed()
    assert (won.variant, won.latency_ms, won.chosen_ms) == ("steady", 1.3, 1.2)
    assert asked == ["lucky", "steady"]
    assert {one.variant: one.latency_ms for one in finish.variants} == {"lucky": 1.5, "steady": 1.3}


def test_a_limit_of_time_has_to_hold_the_second_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = finished(FitGoal(accuracy=0.8, latency_ms=1.1), tmp_path, made(0, "lucky", 1.0), made(0, "other", 1.05))
    measured({"lucky": 1.5, "other": 1.08}, monkeypatch, finish)
    assert finish._confirmed().variant == "other"
    alone = finished(FitGoal(accuracy=0.8, latency_ms=1.1), tmp_path, made(0, "lucky", 1.0))
    measured({"lucky": 1.5}, monkeypatch, alone)
    assert alone._confirmed().misses == ("1.5 ms, the limit is 1.1",)


def test_ctrl_c_leaves_the_second_measurement_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = finished(FitGoal(accuracy=0.8), tmp_path, made(0, "one", 1.0))
    asked = measured({"one": 1.5}, monkeypatch, finish)
    won = finish.choose([], None, 0.0, lambda: True)
    assert (won.latency_ms, asked) == (1.0, [])


def test_a_network_that_cannot_be_measured_is_left_out_and_the_next_one_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = finished(FitGoal(accuracy=0.8), tmp_path)
    trials = [types.SimpleNamespace(number=number) for number in (0, 1)]
    good = made(1, "onnx-fp32", 1.0)
    finish._judged[1, "onnx-fp32"] = np.arange(100) < 95

    def variants(trial: Any, *_: object) -> list[FitVariant]:
        if trial.number == 0:
            raise IncompatibleError("the process that measured it ended", "")
        return [good]

    monkeypatch.setattr(finish, "_bundle", lambda trial: trial)
    monkeypatch.setattr(finish, "_variants", variants)
    measured({"onnx-fp32": 1.1}, monkeypatch, finish)
    won = finish.choose(trials, None, math.inf, lambda: False)  # type: ignore[arg-type]
    assert (won.trial, won.latency_ms) == (1, 1.1)
    assert finish.notes == ["trial 1 is left out, the process that measured it ended"]


def test_where_no_variant_runs_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = finished(FitGoal(accuracy=0.8), tmp_path)
    monkeypatch.setattr(finish, "_bundle", lambda trial: trial)
    monkeypatch.setattr(finish, "_variants", lambda *_: [])
    with pytest.raises(ParityError, match="none of its variants runs here"):
        finish.choose([types.SimpleNamespace(number=0)], None, math.inf, lambda: False)  # type: ignore[list-item]
