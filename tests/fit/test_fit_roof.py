"""The winner's share of the roof: never above 1, and what keeps it lower adds up to the whole call."""

from __future__ import annotations

import msgspec
import pytest
from test_fit_finish import made

from vggdeploy.bench.profile import profile_layers
from vggdeploy.bench.run import BenchPlan
from vggdeploy.bundle import Bundle
from vggdeploy.fit import roof
from vggdeploy.fit.material import Material
from vggdeploy.fit.roof import MULTIPLIES, OUTSIDE, roof_of, times_of
from vggdeploy.records import CpuRoof
from vggdeploy.system.machine import usable_cores
from vggdeploy.types import Precision, silent


@pytest.fixture(scope="module")
def digits() -> Material:
    return Material.of("digits", None, seed=0, on_progress=silent)


def roofs(fp32: float, int8: float) -> tuple[CpuRoof, ...]:
    pairs = ((Precision.FP32, fp32), (Precision.INT8, int8))
    return tuple(CpuRoof(precision=p, tera_ops=t, side=1024, threads=2, library="") for p, t in pairs)


@pytest.mark.late
def test_the_roof_is_measured_and_a_call_is_taken_apart(bundle: Bundle, digits: Material) -> None:
    found = roof_of(bundle, made(0, "onnx-fp32", 50.0), digits, None, silent)
    assert found.share is not None
    assert 0 < found.share < 1
    assert {one.precision for one in found.roofs} >= {Precision.FP32}
    assert sum(found.times.values()) == pytest.approx(1)
    assert found.times[MULTIPLIES] > 0.1
    assert any("It computes in FP32" in text for text in found.limits) == (found.int8_share is not None)


def test_a_network_faster_than_the_roof_gets_no_share_and_the_roof_is_measured_again(
    bundle: Bundle, digits: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def busy(
        threads: int,
    ) -> tuple[CpuRoof, ...]:  # a machine that something else keeps busy while the roof is measured
        asked.append(threads)
        return roofs(1e-6, 2e-6)

    monkeypatch.setattr(roof, "measure_roofs", busy)
    found = roof_of(bundle, made(0, "onnx-fp32", 0.5), digits, None, silent)
    assert asked == [usable_cores()] * 2
    assert (found.share, found.int8_share) == (None, None)
    assert "more than the roof that was measured twice" in found.limits[0]
    # Busy only the first time: the higher of both is the roof.
    answers = iter([roofs(1e-6, 2e-6), roofs(100.0, 200.0)])
    monkeypatch.setattr(roof, "measure_roofs", lambda threads: next(answers))
    again = roof_of(bundle, made(0, "onnx-fp32", 0.5), digits, None, silent)
    assert again.share is not None
    assert again.share < 1
    assert not any("more than the roof" in text for text in again.limits)


def test_the_highest_of_two_measurements_is_the_roof() -> None:
    best = roof._highest(roofs(1.0, 9.0), roofs(2.0, 3.0))
    assert {one.precision: one.tera_ops for one in best} == {Precision.FP32: 2.0, Precision.INT8: 9.0}


def test_fewer_threads_and_a_wider_precision_are_said_to_be_what_limits() -> None:
    one = msgspec.structs.replace(made(0, "onnx-fp32", 1.0), threads=1)
    told = " ".join(roof._settings(0.1, one, 4, roofs(1.0, 4.0)))
    assert "fastest with 1 of 4 threads, which reach about 25% of the roof" in told
    assert "FP32, whose roof is 25% of INT8's" in told
    whole = msgspec.structs.replace(one, precision=Precision.INT8, threads=4)
    assert roof._settings(0.1, whole, 4, roofs(1.0, 4.0)) == []


def test_what_is_not_in_any_kernel_is_the_calls_own(bundle: Bundle) -> None:
    plan = BenchPlan(variants=("onnx-fp32",), batches=(1,), seconds=0.2)
    (profile,) = profile_layers(bundle, plan, threads=1).profiles
    slow = msgspec.structs.replace(profile, call_ms=10 * profile.kernels_ms)
    times = times_of(slow, bundle.manifest.spec)
    assert times[OUTSIDE] == pytest.approx(0.9, abs=0.1)
    told = roof._kernels(times, slow, bundle.manifest.spec)
    assert "is outside of its kernels" in told[0]
    none = msgspec.structs.replace(profile, call_ms=0.0)  # no clock says that kernels took longer than their call
    assert times_of(none, bundle.manifest.spec)[OUTSIDE] == 0
