"""What a GPU day comes to: what failed, and how near its fastest VGG-16 came to the roof."""

from __future__ import annotations

from collections.abc import Iterator

from vggdeploy.errors import counted
from vggdeploy.records.gpu_day import Check, GpuDay, NetworkRate, OperationRate, StepOutcome

# The most that ‖answers − FP64's‖ ∕ ‖FP64's‖ may be: 16 units of the precision's last place (2⁻¹¹ of FP16 and TF32, 2⁻⁸ of
# BF16), whose errors grow as √depth. FP32 sums thousands of products, and must not reach TF32's single unit, 5e-4.
LIMITS = {"fp32": 2e-5, "tf32": 16 * 2**-11, "fp16": 16 * 2**-11, "bf16": 16 * 2**-8}
NETWORK = "vgg16"


def networks(day: GpuDay) -> list[NetworkRate]:
    return [reading for step in day.steps for reading in step.readings if isinstance(reading, NetworkRate)]


def failures(day: GpuDay) -> list[str]:
    """Each step, proof and network that failed, in a sentence."""
    found = [f"{step.name}: {step.reason}" for step in day.steps if step.outcome is StepOutcome.FAILED]
    for step in day.steps:
        found += [
            f"{reading.what}: {reading.reason or reading.detail}"
            for reading in step.readings
            if isinstance(reading, Check) and reading.outcome == "failed"
        ]
    for rate in networks(day):
        limit = LIMITS[rate.precision]
        if not rate.relative_l2 <= limit:  # a NaN, too
            found.append(f"{title(rate)} is {rate.relative_l2:.1e} from FP64, more than {limit:.1e}")
    return found


def convolution_roof(day: GpuDay, precision: str) -> float | None:
    """The fastest convolution of VGG-16 in this precision alone, in TOP/s."""
    rates = (
        reading.tera_ops
        for step in day.steps
        for reading in step.readings
        if isinstance(reading, OperationRate) and reading.operation == "convolution" and reading.precision == precision
    )
    return max(rates, default=None)


def fastest(day: GpuDay, *, compiled: bool, batch: int = 0) -> NetworkRate | None:
    """VGG-16's best images a second in FP16, by torch.compile or by anything else, at any batch or at this one."""
    rates = [
        rate
        for rate in networks(day)
        if rate.network == NETWORK
        and rate.precision == "fp16"
        and rate.by.startswith("torch.compile") is compiled
        and batch in (0, rate.batch)
    ]
    return max(rates, key=lambda rate: rate.images_per_second, default=None)


def title(rate: NetworkRate) -> str:
    return f"{rate.network}, {rate.precision}, batch {rate.batch}, {rate.by}"


def lines(day: GpuDay) -> Iterator[str]:
    """The verdict first, then the numbers it rests on, then how each step ended."""
    wrong = failures(day)
    proven = len(networks(day))
    yield f"✘ {len(wrong)} failed" if wrong else f"✔ nothing failed; {proven} settings of networks answer as FP64 does"
    yield from (f"  {sentence}" for sentence in wrong)
    yield day.gpu
    yield from speed(day)
    for step in day.steps:
        why = f": {step.reason}" if step.reason else ""
        yield f"{step.outcome:>8}  {step.name} ({step.seconds:.0f} s, {counted(len(step.readings), 'reading')}){why}"


def speed(day: GpuDay) -> Iterator[str]:
    """The fastest VGG-16 beside the roof, and beside torch.compile at the batch size where that was fastest."""
    best, opponent, roof = fastest(day, compiled=False), fastest(day, compiled=True), convolution_roof(day, "fp16")
    if best is None:
        return
    share = f", {best.tera_ops / roof:.0%} of the FP16 convolution roof ({roof:,.0f} TOP/s)" if roof else ""
    yield f"fastest VGG-16: {best.images_per_second:,.0f} images/s by {best.by}, batch {best.batch}{share}"
    ours = fastest(day, compiled=False, batch=opponent.batch) if opponent is not None else None
    if ours is not None and opponent is not None:
        ratio = ours.images_per_second / opponent.images_per_second
        yield (
            f"at batch {ours.batch}: {ours.images_per_second:,.0f} images/s by {ours.by}, {ratio:.2f} × the "
            f"{opponent.images_per_second:,.0f} of {opponent.by}"
        )
