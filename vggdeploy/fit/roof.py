"""The winner's share of what this machine's CPUs can multiply, and what keeps it from more: measured, in plain words."""

from __future__ import annotations

from collections.abc import Iterable

from vggdeploy.bench.profile import profile_layers
from vggdeploy.bench.roof import limit_of, measure_roofs, share_of_roof
from vggdeploy.bench.run import BenchPlan
from vggdeploy.bundle import Bundle
from vggdeploy.errors import VggdeployError
from vggdeploy.fit.material import Material
from vggdeploy.model.layers import Layer, layers_of
from vggdeploy.optimize.steps.widths import macs_of
from vggdeploy.records import CpuRoof
from vggdeploy.records.fit import FitRoof, FitVariant
from vggdeploy.records.profile import VariantProfile
from vggdeploy.spec import ModelSpec
from vggdeploy.system.machine import usable_cores
from vggdeploy.types import OnProgress, Precision

MULTIPLIES, LAYERS, REARRANGES, OUTSIDE = "multiplies", "other layers", "converts and rearranges", "outside of kernels"
_SECONDS = 1.0  # of the profile
_WORTH = 0.05  # a share of a call that is worth a sentence
_SLOW = 1.5  # a layer's share of the time over its share of the multiply-accumulates, that is worth a sentence
_VECTOR = 4  # values that one instruction for INT8 multiplies and adds up


def roof_of(
    bundle: Bundle, won: FitVariant, material: Material, threads: int | None, on_progress: OnProgress
) -> FitRoof:
    """Of the winner, on this machine. Nothing depends on it: it is told, and chooses nothing.

    Raises:
        VggdeployError: no library here can measure the roof.
    """
    spec, most = bundle.manifest.spec, threads or usable_cores()
    on_progress(None, "measuring the roof of the CPUs")
    reached = 2 * macs_of(spec) / won.latency_ms / 1e9
    roofs = measure_roofs(most)
    if _over(reached, won.precision, roofs):  # the machine was busy; a busy machine is no roof
        roofs = _highest(roofs, measure_roofs(most))
    on_progress(None, "timing the winner's kernels")
    profile, missing = None, ""
    plan = BenchPlan(
        variants=(won.variant,), batches=(1,), seconds=_SECONDS, data=material.name, data_dir=material.data_dir
    )
    try:
        (profile,) = profile_layers(bundle, plan, threads=won.threads or threads).profiles
    except VggdeployError as error:  # a library that does not time its kernels
        missing = f"Its kernels were not timed: {error.cause}."
    times = times_of(profile, spec) if profile else {}
    return FitRoof(
        tera_ops=reached,
        threads=won.threads,
        share=share_of_roof(reached, won.precision, roofs),
        int8_share=share_of_roof(reached, Precision.INT8, roofs),
        roofs=roofs,
        times=times,
        limits=(
            *_settings(reached, won, most, roofs),
            *_kernels(times, profile, spec),
            *([missing] if missing else []),
        ),
    )


def times_of(profile: VariantProfile, spec: ModelSpec) -> dict[str, float]:
    """The shares of a call: what multiplies, what else layers do, what only converts and rearranges, and what no kernel
    explains. They add up to 1."""
    multiplying = set(_multiplying(spec))
    sums = {MULTIPLIES: 0.0, LAYERS: 0.0, REARRANGES: 0.0}
    for kernel in profile.kernels:
        kind = MULTIPLIES if multiplying & set(kernel.layers) else LAYERS if kernel.layers else REARRANGES
        sums[kind] += kernel.ms
    sums[OUTSIDE] = max(profile.call_ms - sum(sums.values()), 0.0)
    whole = sum(sums.values())
    return {kind: ms / whole for kind, ms in sums.items()} if whole > 0 else {}


def _settings(reached: float, won: FitVariant, most: int, roofs: tuple[CpuRoof, ...]) -> list[str]:
    """What was chosen that keeps a network below the roof, and a roof that is none."""
    told = []
    mine, int8 = limit_of(won.precision, roofs), limit_of(Precision.INT8, roofs)
    if _over(reached, won.precision, roofs):
        told.append(
            f"It reached {reached:.3g} TOP/s, more than the roof that was measured twice ({mine or 0:.3g}): the machine "
            "was busier then, so no share is told."
        )
    if won.threads and won.threads < most:
        told.append(
            f"It is fastest with {won.threads} of {most} threads, which reach about {won.threads / most:.0%} of the roof at "
            "most: a call is over before more of them have met."
        )
    if mine and int8 and won.precision is not Precision.INT8:
        told.append(f"It computes in {won.precision.upper()}, whose roof is {mine / int8:.0%} of INT8's.")
    return told


def _kernels(times: dict[str, float], profile: VariantProfile | None, spec: ModelSpec) -> list[str]:
    """What a call's time goes to beside multiplying, the largest share first, and the layer that multiplies worst."""
    words = {
        OUTSIDE: "is outside of its kernels: checks, copies and scheduling, which a small network cannot hide",
        REARRANGES: "converts, quantises and rearranges values, and multiplies nothing",
        LAYERS: "is pools and other layers that multiply nothing",
    }
    lost = sorted((kind for kind in words if times.get(kind, 0) >= _WORTH), key=lambda kind: -times[kind])
    told = [f"{times[kind]:.0%} of a call {words[kind]}." for kind in lost]
    if profile is not None and (slow := _slowest(profile, spec)):
        told.append(slow)
    return told


def _slowest(profile: VariantProfile, spec: ModelSpec) -> str:
    """The kernel that takes more of the multiplying time than it has of the multiply-accumulates, by most; else ""."""
    layers = _multiplying(spec)
    rows = [
        (ms, [layers[n] for n in names if n in layers]) for names, ms in ((k.layers, k.ms) for k in profile.kernels)
    ]
    rows = [(ms, found) for ms, found in rows if found]
    whole, macs = sum(ms for ms, _ in rows), macs_of(spec)
    if not whole:
        return ""

    def lost(row: tuple[float, list[Layer]]) -> float:
        return row[0] / whole - sum(layer.macs for layer in row[1]) / macs

    worst = max(rows, key=lost)
    time, work = worst[0] / whole, sum(layer.macs for layer in worst[1]) / macs
    if lost(worst) < _WORTH or time < _SLOW * work:
        return ""
    first = worst[1][0]
    why = f": it has {first.inputs} input channel{'s' * (first.inputs != 1)}, and vectors of {_VECTOR} are not filled"
    return (
        f"{' and '.join(layer.name for layer in worst[1])} takes {time:.0%} of the multiplying time for {work:.0%} of the "
        f"multiply-accumulates{why if first.inputs < _VECTOR else ''}."
    )


def _multiplying(spec: ModelSpec) -> dict[str, Layer]:
    return {layer.name: layer for layer in layers_of(spec) if layer.macs}


def _over(reached: float, precision: Precision, roofs: Iterable[CpuRoof]) -> bool:
    limit = limit_of(precision, roofs)
    return limit is not None and reached > limit


def _highest(*measured: tuple[CpuRoof, ...]) -> tuple[CpuRoof, ...]:
    """The highest roof of each precision."""
    best: dict[Precision, CpuRoof] = {}
    for roof in (roof for roofs in measured for roof in roofs):
        if roof.precision not in best or roof.tera_ops > best[roof.precision].tera_ops:
            best[roof.precision] = roof
    return tuple(best.values())
