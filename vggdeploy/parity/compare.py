"""One variant, run from its shipped bytes, against the FP32 PyTorch reference: measured, then judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import VggdeployError
from vggdeploy.parity.metrics import OutputStats, accuracy_drop, flip_count, samples_to_decide, top1, top5
from vggdeploy.records import AccuracyDrop, FlipCount, OutputParity, ParityRecord, Thresholds
from vggdeploy.runtime import CheckedSession, backend_for
from vggdeploy.runtime.batches import run_batch
from vggdeploy.types import Device, TensorSpec, Verdict

Array = NDArray[Any]
Progress = Callable[[int], None]
GOLDEN = "golden pair"
# A feature map of one image can have more values than the class scores of ten thousand: what is kept is bounded.
KEPT_BYTES = 256 * 2**20  # of the reference's outputs
BATCH_BYTES = 64 * 2**20  # of one batch's outputs
COMPARED_VALUES = 4 * 2**20  # at once: comparing takes five FP64 copies


@dataclass(frozen=True)
class Reference:
    """Inputs with the reference's outputs for them, and the true labels where there are any.

    Each output is that of the first images, of as many as it has rows: of large feature maps those are few.
    """

    images: Array
    outputs: dict[str, Array]
    data: str
    labels: NDArray[np.int64] | None = None

    @property
    def is_golden(self) -> bool:
        return self.data.startswith(GOLDEN)


def batches(images: Array, size: int) -> Iterator[Array]:
    return (images[start : start + size] for start in range(0, len(images), size))


def run_all(session: CheckedSession, images: Array, on_progress: Progress | None = None) -> Iterator[dict[str, Array]]:
    """The session's outputs for ``images``, a batch at a time."""
    fitting = BATCH_BYTES // sum(map(sample_bytes, session.outputs))
    for batch in batches(images, max(session.batch.min, min(session.batch.opt, fitting))):
        yield run_batch(session, batch)
        if on_progress:
            on_progress(len(batch))


def reference_outputs(
    session: CheckedSession,
    images: Array,
    *,
    data: str,
    labels: NDArray[np.int64] | None = None,
    on_progress: Progress | None = None,
) -> Reference:
    """Run the reference once; its outputs serve every variant. Of each output `kept_rows` are kept."""
    rows = kept_rows(session.outputs, len(images))
    count = max(rows.values())
    if count < len(images):
        images, data = images[:count], f"{data}, the first {count}"
    outputs = {s.name: np.empty((rows[s.name], *s.item_shape), s.dtype) for s in session.outputs}
    done = 0
    for found in run_all(session, images, on_progress):
        for name, kept in outputs.items():
            part = kept[done : done + len(found[name])]
            part[:] = found[name][: len(part)]
        done += len(found[name])
    return Reference(images=images, outputs=outputs, data=data, labels=None if labels is None else labels[:count])


def sample_bytes(output: TensorSpec) -> int:
    """Bytes of one sample of an output."""
    return prod(output.item_shape) * np.dtype(output.dtype).itemsize


def kept_rows(outputs: Sequence[TensorSpec], images: int, *, limit: int = KEPT_BYTES) -> dict[str, int]:
    """Of how many images each output is kept, so that all of them fit into about ``limit`` bytes.

    Small outputs take what they need and the large ones share what is left: so class scores are kept of every image,
    however large the maps beside them are. Before that, an eighth of the bytes is shared out evenly in rows, one at
    least: no output has fewer than the golden pair takes.
    """
    together = sum(map(sample_bytes, outputs))
    same = min(images, max(1, limit // 8 // together))
    left = max(0, limit - same * together)
    found: dict[str, int] = {}
    for index, output in enumerate(sorted(outputs, key=sample_bytes)):
        size = sample_bytes(output)
        more = min(images - same, left // (len(outputs) - index) // size)
        found[output.name] = same + more
        left -= more * size
    return found


def golden_reference(bundle: Bundle) -> Reference:
    """The pair that travels in the bundle: a reference that needs no torch."""
    inputs, outputs = bundle.golden()
    images = inputs[bundle.manifest.input.name]
    return Reference(images=images, outputs=dict(outputs), data=f"{GOLDEN} ({len(images)} images)")


def check_golden(session: CheckedSession, bundle: Bundle, variant: Variant, device: Device) -> ParityRecord:
    """The proof that any machine can repeat: the golden inputs through an open session."""
    return compare(session, golden_reference(bundle), bundle, variant, device)


def compare(
    session: CheckedSession,
    reference: Reference,
    bundle: Bundle,
    variant: Variant,
    device: Device,
    *,
    thresholds: Thresholds | None = None,
    on_progress: Progress | None = None,
) -> ParityRecord:
    """Compare an open session with the reference on all its images; the record carries the verdict.

    ``thresholds`` stand in for those of the manifest.
    """
    about: dict[str, Any] = {
        "variant": variant.name,
        "backend": backend_for(variant).name,
        "device": str(device),
        "data": reference.data,
        "sha256": bundle.sha256(variant.path),
    }
    stats = {name: OutputStats(name) for name in reference.outputs}
    classes: list[NDArray[np.int64]] = []
    best: list[NDArray[np.int64]] = []
    done = 0
    try:
        for found in run_all(session, reference.images, on_progress):
            size = len(next(iter(found.values())))
            for name, stat in stats.items():
                _update(stat, reference.outputs[name][done : done + size], found[name])
            chosen = top1(found)
            if chosen is not None:
                classes.append(chosen)
            five = top5(found)
            if five is not None:
                best.append(five)
            done += size
    except VggdeployError as error:  # an overflow, a refused batch: a variant that cannot answer has failed
        return ParityRecord(verdict=Verdict.FAIL, reasons=(error.cause,), **about)
    outputs = tuple(stat.result() for stat in stats.values())
    expected = top1(reference.outputs)
    flips = top5_flips = drop = None
    accuracy: tuple[float | None, float | None] = (None, None)
    if classes and expected is not None:
        actual = np.concatenate(classes)[: len(expected)]
        flips = flip_count(int((actual != expected).sum()), len(actual))
        if best:
            kept = (np.concatenate(best)[: len(expected)] == expected[:, None]).any(axis=1)
            top5_flips = flip_count(int((~kept).sum()), len(kept))
        if reference.labels is not None:
            labels = reference.labels[: len(expected)]
            accuracy = float((expected == labels).mean()), float((actual == labels).mean())
            drop = accuracy_drop(expected == labels, actual == labels)
    limits = thresholds or bundle.manifest.thresholds[variant.precision]
    verdict, reasons = judge(outputs, flips, limits, drop=drop, golden=reference.is_golden)
    return ParityRecord(
        verdict=verdict,
        reasons=reasons,
        outputs=outputs,
        flips=flips,
        top5_flips=top5_flips,
        drop=drop,
        reference_accuracy=accuracy[0],
        candidate_accuracy=accuracy[1],
        **about,
    )


def _update(stat: OutputStats, reference: Array, candidate: Array) -> None:
    """Add a batch, a few rows at a time; the reference may have kept fewer rows than the batch has."""
    step = max(1, COMPARED_VALUES // prod(candidate.shape[1:]))
    for start in range(0, len(reference), step):
        stop = min(start + step, len(reference))
        stat.update(reference[start:stop], candidate[start:stop])


def judge(
    outputs: tuple[OutputParity, ...],
    flips: FlipCount | None,
    thresholds: Thresholds,
    *,
    drop: AccuracyDrop | None = None,
    golden: bool = False,
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and a line for each criterion that was missed or could not be decided.

    Distances decide on the samples that were seen. Flips are judged by their bounds: fail when even the lower one is
    above the limit, inconclusive when the limit lies between them; the accuracy drop likewise, where a limit is set.
    A golden pair is too small for that; there a flip fails only together with a distance, and nothing is promised.
    """
    wrong: list[str] = []
    for o in outputs:
        # "not ≤" rather than ">": a NaN is wrong too.
        if not o.relative_l2 <= thresholds.relative_l2:
            wrong.append(f"{o.output}: relative L2 {o.relative_l2:.3g} is above {thresholds.relative_l2:g}")
        if not o.cosine_min >= thresholds.cosine:
            wrong.append(f"{o.output}: smallest cosine {o.cosine_min:.6f} is below {thresholds.cosine:g}")
    if flips and not golden and flips.lower > thresholds.flip_rate:
        wrong.append(f"{flips.flips} of {flips.samples} top-1 classes changed; the limit is {thresholds.flip_rate:.1%}")
    limit = thresholds.accuracy_drop
    if limit is not None and drop and drop.lower > limit:
        wrong.append(f"accuracy fell by {drop.drop:.2%} (at least {drop.lower:.2%}); the limit is {limit:.2%}")
    if wrong:
        return Verdict.FAIL, tuple(wrong)
    unsure: list[str] = []
    if flips and not golden and flips.upper > thresholds.flip_rate:
        unsure.append(
            f"{flips.flips} of {flips.samples} top-1 classes changed: up to {flips.upper:.1%} at 95% confidence, "
            f"the limit is {thresholds.flip_rate:.1%}; {_how_many(flips, thresholds.flip_rate)}"
        )
    if limit is not None and not golden and (drop is None or drop.upper > limit):
        unsure.append(
            f"accuracy may have fallen by {drop.upper:.2%} at 95% confidence, the limit is {limit:.2%}: look at more images"
            if drop
            else "an accuracy drop needs labelled images: name a data set with --data"
        )
    return (Verdict.INCONCLUSIVE, tuple(unsure)) if unsure else (Verdict.PASS, ())


def _how_many(flips: FlipCount, limit: float) -> str:
    needed = samples_to_decide(flips.flips, flips.samples, limit)
    accept = f"or accept that bound: --max-flips {np.ceil(flips.upper * 1000) / 10:g}"
    return (
        f"look at {needed:,} images, {accept}" if needed else f"the rate itself is at the limit: look at more, {accept}"
    )


def unproven(variant: Variant, reason: str, device: Device) -> ParityRecord:
    """The record of a variant that cannot run here: never a pass."""
    return ParityRecord(
        variant=variant.name,
        backend=backend_for(variant).name,
        device=str(device),
        verdict=Verdict.UNPROVEN,
        reasons=(reason,),
    )
