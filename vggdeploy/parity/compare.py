"""One variant, run from its shipped bytes, against the FP32 PyTorch reference: measured, then judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import VggdeployError
from vggdeploy.parity.judge import judge
from vggdeploy.parity.metrics import ClassCounts, OutputStats
from vggdeploy.parity.reference import Array, Reference, golden_reference, run_all
from vggdeploy.records import ParityRecord, Thresholds
from vggdeploy.runtime import CheckedSession, backend_for
from vggdeploy.types import Device, ImageSource, Verdict

COMPARED_VALUES = 4 * 2**20  # at once: comparing takes five FP64 copies


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
) -> ParityRecord:
    """Compare an open session with the reference on all its images; the record carries the verdict.

    Memory does not grow with the number of images. ``thresholds`` stand in for those of the manifest.
    """
    answers = run_all(session, reference.images)
    return compare_answers(answers, reference, bundle, variant, device, thresholds=thresholds)


def compare_answers(
    answered: Iterable[Mapping[str, Array]],
    reference: Reference,
    bundle: Bundle,
    variant: Variant,
    device: Device | str,
    *,
    thresholds: Thresholds | None = None,
) -> ParityRecord:
    """`compare`, of the answers that something gave to the reference's images: graph output name → rows, batch by batch.

    A known error that they raise is a failure of the variant.
    """
    limits = thresholds or bundle.manifest.thresholds[variant.precision]
    about: dict[str, Any] = {
        "variant": variant.name,
        "backend": backend_for(variant).name,
        "device": str(device),
        "data": reference.data,
        "sha256": bundle.sha256(variant.path),
        "limits": limits,
    }
    stats = {name: OutputStats(name) for name in reference.outputs}
    classes = ClassCounts()
    done = 0
    try:
        for answers in answered:
            batch = slice(done, done + len(next(iter(answers.values()))))
            wanted = {name: rows[batch] for name, rows in reference.outputs.items()}
            for name, stat in stats.items():
                _update(stat, wanted[name], answers[name])
            classes.update(wanted, answers, None if reference.labels is None else reference.labels[batch])
            done = batch.stop
    except VggdeployError as error:  # an overflow, a refused batch: a variant that cannot answer has failed
        return ParityRecord(verdict=Verdict.FAIL, reasons=(error.cause,), **about)
    outputs = tuple(stat.result() for stat in stats.values())
    flips, drop = classes.flips(), classes.drop()
    verdict, reasons = judge(outputs, flips, limits, drop=drop, golden=reference.source is ImageSource.GOLDEN)
    accuracies = classes.accuracies()
    return ParityRecord(
        verdict=verdict,
        reasons=reasons,
        outputs=outputs,
        flips=flips,
        top5_flips=classes.top5_flips(),
        drop=drop,
        reference_accuracy=accuracies[0],
        candidate_accuracy=accuracies[1],
        **about,
    )


def _update(stat: OutputStats, reference: Array, candidate: Array) -> None:
    """Add a batch, a few rows at a time; the reference may have kept fewer rows than the batch has."""
    step = max(1, COMPARED_VALUES // prod(candidate.shape[1:]))
    for start in range(0, len(reference), step):
        stop = min(start + step, len(reference))
        stat.update(reference[start:stop], candidate[start:stop])


def unproven(variant: Variant, reason: str, device: Device | str) -> ParityRecord:
    """The record of a variant that cannot run here: never a pass."""
    return ParityRecord(
        variant=variant.name,
        backend=backend_for(variant).name,
        device=str(device),
        verdict=Verdict.UNPROVEN,
        reasons=(reason,),
    )
