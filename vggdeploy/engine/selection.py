"""Which variant ``backend="auto"`` takes, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from math import ceil

from vggdeploy.bundle import REFERENCE, Bundle, Measurement, Variant
from vggdeploy.errors import IncompatibleError, ParityError, UsageError
from vggdeploy.runtime.preflight import host_of, mismatch
from vggdeploy.runtime.registry import Backend, backend_for, default_device, get_backend
from vggdeploy.runtime.sessions import runnable
from vggdeploy.system.machine import fingerprint, usable_cores
from vggdeploy.types import Device, Precision, Verdict

# Without a measurement on this machine: engines made for a GPU before graphs that may run on one, and on a CPU
# FP32 before FP16, which CPUs without FP16 arithmetic emulate.
_FORMATS = ("tensorrt", "tensorrt-rtx", "openvino", "onnx", "torchscript", "torch-export", "aoti", "checkpoint")
_ON_CPU = (Precision.INT8, Precision.BF16, Precision.FP32, Precision.FP16, Precision.FP8, Precision.TF32)
_ON_GPU = (Precision.INT8, Precision.FP8, Precision.FP16, Precision.BF16, Precision.TF32, Precision.FP32)


class Standing(Enum):
    """Whether a variant may be taken on this machine, or what keeps it from that."""

    USABLE = auto()
    NOT_RUNNABLE = auto()
    FAILED_PARITY = auto()


@dataclass(frozen=True)
class Choice:
    """One variant on this machine: its standing, the reason, and what it is ranked by (lower is faster)."""

    variant: Variant
    standing: Standing
    reason: str
    fix: str = ""
    rank: tuple[float, ...] = ()

    @property
    def usable(self) -> bool:
        return self.standing is Standing.USABLE


def choices(
    bundle: Bundle, *, backend: str = "auto", device: Device | None = None, batch: int | None = None
) -> list[Choice]:
    """Every variant of the bundle with its standing here: usable ones first, fastest first.

    Args:
        batch: how many images come at a time. Default: one, or any number.
    """
    wanted = None if backend == "auto" else get_backend(backend)
    here = fingerprint()
    found = []
    for variant in bundle.manifest.variants:
        runner = backend_for(variant)
        if wanted is not None and runner is not wanted:
            continue
        where = runnable(variant, device)
        if not where.runs:
            reason = _refusal(variant, where.reason, device)
            found.append(Choice(variant, Standing.NOT_RUNNABLE, reason, where.fix))
        elif variant.verdict is Verdict.FAIL:
            found.append(
                Choice(variant, Standing.FAILED_PARITY, "it failed parity", f"run: vggdeploy verify {bundle.root}")
            )
        else:
            found.append(Choice(variant, Standing.USABLE, *_grounds(variant, here, where.device, batch)))
    return sorted(found, key=lambda c: (not c.usable, c.rank))


def _refusal(variant: Variant, reason: str, device: Device | None) -> str:
    """Why a variant cannot run here; of an engine also what would not fit, once what is missing were there."""
    if variant.build is None:
        return reason
    wrong = mismatch(variant, host_of(variant, device or default_device(backend_for(variant))))
    return reason if wrong is None or wrong.cause == reason else f"{reason}; {wrong.cause}"


def _grounds(variant: Variant, machine: str, device: str, batch: int | None) -> tuple[str, str, tuple[float, ...]]:
    """Reason, fix and rank of a usable variant: measured here before assumed.

    Every verdict that gets here is as good: a variant that is not decided keeps its distances, and one that never ran
    has to repeat the golden pair at load.
    """
    proof = {Verdict.PASS: "proven", Verdict.INCONCLUSIVE: "close to the reference; too few images to bound flips"}.get(
        variant.verdict, "not run yet: the golden pair decides at load"
    )
    on_cpu = device == "cpu"
    precision = float((_ON_CPU if on_cpu else _ON_GPU).index(variant.precision))
    kind = float(_FORMATS.index(variant.format))
    # Of engines that fit alike the one for the fewest GPUs: code that serves more of them is slower on some.
    targets = len(variant.build.targets) if variant.build else 0
    # On a CPU INT8 is faster than FP32 in whatever library; on a GPU an engine is faster than a graph in whatever precision.
    fits = _fitness(variant, batch)
    assumed = (precision, kind, *fits, float(targets)) if on_cpu else (kind, precision, *fits, float(targets))
    if variant.build:
        proof = f"{proof}, built by {variant.build.version} for {', '.join(variant.build.targets)}"
    if variant.name == REFERENCE:
        proof = "the reference"
    best = _best(variant, machine, batch)
    if best:
        return f"{proof}, {best.p50_ms:.2f} ms at batch {best.batch} here", "", (0.0, _duration(best, batch))
    if backend_for(variant).compiles:  # a minute of compiling is for those who asked for it
        return f"{proof}, not measured here, and compiled when it is first opened", "", (2.0, *assumed)
    return f"{proof}, not measured here", "", (1.0, *assumed)


def measured_threads(variant: Variant) -> int | None:
    """The CPU threads that a variant was fastest with where it was measured here; None for every core."""
    best = _best(variant, fingerprint())
    return best.threads if best and best.threads < usable_cores() else None


def _best(variant: Variant, machine: str, batch: int | None = None) -> Measurement | None:
    times = [m for m in variant.measured if m.machine == machine]
    if batch is None:
        return min(times, key=lambda m: (m.batch, m.p50_ms), default=None)
    return min(times, key=lambda m: _duration(m, batch), default=None)


def _duration(measured: Measurement, batch: int | None) -> float:
    """Milliseconds that ``batch`` images take in batches of the size that was measured, the last one filled up."""
    return measured.p50_ms * ceil((batch or 1) / measured.batch)


def _fitness(variant: Variant, batch: int | None) -> tuple[float, ...]:
    """How well an engine's batch sizes serve what is wanted, less being better; all other variants are alike.

    Of engines that take a batch the one that is tuned closest to it, then the one that is tuned for it alone. Without a
    batch: one that takes single images, then the one that is tuned for more sizes, then the one that takes larger batches.
    """
    profiles = variant.profiles
    if variant.build is None:
        return (0.0, 0.0, 0.0)
    if batch is None:
        return (float(profiles[0].min > 1), -float(len(profiles)), -float(profiles[-1].max))
    outside = max(0, profiles[0].min - batch, batch - profiles[-1].max)
    closest = min(profiles, key=lambda p: (not p.min <= batch <= p.max, abs(p.opt - batch)))
    return (float(outside), float(abs(closest.opt - batch)), float(closest.max - closest.min))


def unfit(
    bundle: Bundle, *, backend: str = "auto", variants: Sequence[str] = (), device: Device | None = None
) -> list[Variant]:
    """Engines that do not fit this machine, though their library and a GPU are here: a rebuild helps. Best first.

    Args:
        variants: names to look among. Default: all of ``backend``.
    """
    wanted = None if backend == "auto" else get_backend(backend)
    named = [bundle.manifest.variant(name) for name in variants]
    found = []
    for variant in named or bundle.manifest.variants:
        runner = backend_for(variant)
        if variant.build is None or (wanted is not None and runner is not wanted):
            continue
        where = device or default_device(runner)
        if runner.probe(where).runs and mismatch(variant, host_of(variant, where)) is not None:
            found.append(variant)
    return sorted(found, key=lambda v: (_FORMATS.index(v.format), _ON_GPU.index(v.precision)))


def select(
    bundle: Bundle,
    *,
    backend: str = "auto",
    variant: str | None = None,
    device: Device | None = None,
    batch: int | None = None,
) -> list[Variant]:
    """The usable variants, best first; never empty.

    Args:
        batch: how many images come at a time. Default: one, or any number.

    Raises:
        IncompatibleError: nothing asked for runs here.
        ParityError: what was asked for failed parity.
    """
    if variant is not None:
        chosen = bundle.manifest.variant(variant)
        runner = backend_for(chosen)
        if backend != "auto" and get_backend(backend) is not runner:
            raise UsageError(
                f"{variant} is run by {runner.name}, not by {get_backend(backend).name}",
                "leave --backend or --variant out",
            )
        if chosen.verdict is Verdict.FAIL:
            raise ParityError(
                f"{variant} failed parity", f"see why: vggdeploy verify {bundle.root} --variant {variant}"
            )
        where = runnable(chosen, device)
        if not where.runs:
            raise IncompatibleError(f"{variant} cannot run here: {where.reason}", where.fix)
        return [chosen]
    found = choices(bundle, backend=backend, device=device, batch=batch)
    usable = [c.variant for c in found if c.usable]
    if usable:
        return usable
    if not found:
        raise _nothing_for(backend, bundle, device)
    first = next((c for c in found if c.variant.name != REFERENCE), found[0])
    if first.standing is Standing.FAILED_PARITY:
        raise ParityError(f"{first.variant.name} failed parity", first.fix)
    raise IncompatibleError(f"{first.variant.name} cannot run here: {first.reason}", first.fix)


def _nothing_for(backend: str, bundle: Bundle, device: Device | None) -> IncompatibleError:
    """The bundle holds nothing that this backend runs; whether it could run here at all is said with it."""
    runner = get_backend(backend)
    have = ", ".join(v.name for v in bundle.manifest.variants)
    here = runner.probe(device or default_device(runner))
    cause = f"the bundle has no variant for {runner.name} (it has {have})"
    make = _making(runner, bundle)
    if here.runs:
        return IncompatibleError(cause, f"make one: {make}")
    return IncompatibleError(f"{cause}, and {runner.name} cannot run here: {here.reason}", f"{here.fix}; then: {make}")


def _making(runner: Backend, bundle: Bundle) -> str:
    """The command that makes a variant for a backend; nothing that is in the bundle gets lost by it."""
    if runner.builds_on:
        return f"vggdeploy build {bundle.root} --engine {runner.name}"
    if runner.format == "openvino":
        return f"vggdeploy optimize {bundle.root} --step openvino-fp32"
    asked = f" --formats {runner.format}-fp32" if runner.format in ("torch-export", "aoti") else ""
    return f"vggdeploy export {bundle.root}/checkpoint -o {bundle.root}-whole{asked}"
