"""One variant, run from its shipped bytes, against the FP32 PyTorch reference: measured, then judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

import msgspec

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import VggdeployError
from vggdeploy.parity.batches import compare_batch, repeat
from vggdeploy.parity.criteria import Criteria, criteria_of
from vggdeploy.parity.judge import judge
from vggdeploy.parity.metrics import ClassCounts, OutputStats
from vggdeploy.parity.reference import Array, Reference, golden_reference, run_all
from vggdeploy.parity.stress import stress_reference
from vggdeploy.records import ParityRecord
from vggdeploy.runtime import CheckedSession, backend_for
from vggdeploy.runtime.sessions import conditions
from vggdeploy.types import Device, ImageSource, Verdict

SAME = 10  # two answers to the same batch are the same within this part of what the variant may be off
COMPARED_VALUES = 4 * 2**20  # at once: comparing takes five FP64 copies


def check_golden(
    session: CheckedSession,
    bundle: Bundle,
    variant: Variant,
    device: Device,
    *,
    sizes: Sequence[int] = (),
    criteria: Criteria | None = None,
    stress: bool = False,
    repeated: bool = False,
) -> ParityRecord:
    """The proof that any machine can repeat: the golden inputs through an open session.

    Args:
        sizes: batch sizes in which they run, each judged by the same limits. Default: the one it is optimised for.
        stress: run the stress images, too.
        repeated: ask for the same batch again and again, too; every answer has to be the same.
    """
    criteria = criteria or criteria_of(bundle, variant)
    golden = golden_reference(bundle)
    record = compare(session, golden, bundle, variant, device, criteria=criteria)
    if record.verdict is Verdict.FAIL:
        return record
    limits = criteria.of(golden.source)
    batches, wrong = [], []
    try:
        for size in sizes:
            batch, outputs = compare_batch(session, golden, size)
            batches.append(batch)
            judged = judge(outputs, None, limits, golden=True, allowed=criteria.allowed(golden.source))
            wrong += [f"in batches of {size}, {reason}" for reason in judged.reasons]
        repeats = repeat(session, golden, limits.relative_l2 / SAME) if repeated else None
        edges = stress_reference(bundle) if stress else None
        if edges is not None:
            at_the_edges = compare(session, edges, bundle, variant, device, criteria=criteria)
            record = msgspec.structs.replace(record, stress=at_the_edges.outputs)
            wrong += [f"on the stress images, {reason}" for reason in at_the_edges.reasons]
    except VggdeployError as error:
        return record.failed((*wrong, error.cause))
    if repeats is not None and repeats.differing:
        wrong.append(f"the same batch got another answer in {repeats.differing} of {repeats.calls} calls")
    if wrong:
        record = record.failed((*record.reasons, *wrong))
    return msgspec.structs.replace(record, batches=tuple(batches), repeats=repeats)


def prove_at_load(session: CheckedSession, bundle: Bundle, variant: Variant, device: Device) -> ParityRecord:
    """The part of the proof that a load has time for: the smallest batch, the usual one, and the stress images."""
    sizes = sorted({session.batch.min, session.batch.opt})
    return check_golden(session, bundle, variant, device, sizes=sizes, stress=True)


def compare(
    session: CheckedSession,
    reference: Reference,
    bundle: Bundle,
    variant: Variant,
    device: Device,
    *,
    criteria: Criteria | None = None,
    sizes: Sequence[int] = (),
) -> ParityRecord:
    """Compare an open session with the reference on all its images; the record carries the verdict.

    Memory does not grow with the number of images.

    Args:
        criteria: default those of the bundle, see `criteria_of`.
        sizes: of the first batches, see `run_all`.
    """
    answers = run_all(session, reference.images, sizes)
    host = conditions(variant, device)
    return compare_answers(answers, reference, bundle, variant, device, criteria=criteria, host=host)


def compare_answers(
    answered: Iterable[Mapping[str, Array]],
    reference: Reference,
    bundle: Bundle,
    variant: Variant,
    device: Device | str,
    *,
    criteria: Criteria | None = None,
    host: Mapping[str, str] = MappingProxyType({}),
) -> ParityRecord:
    """`compare`, of the answers that something gave to the reference's images: graph output name → rows, batch by batch.

    A known error that they raise is a failure of the variant. ``host``: see `vggdeploy.runtime.sessions.conditions`.
    """
    criteria = criteria or criteria_of(bundle, variant)
    about: dict[str, Any] = {
        "variant": variant.name,
        "backend": backend_for(variant).name,
        "device": str(device),
        "data": reference.data,
        "sha256": bundle.sha256(variant.path),
        "limits": criteria.of(reference.source),
        "source": reference.source,
        "host": dict(host),
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
        return ParityRecord(verdict=Verdict.FAIL, numerical=Verdict.FAIL, reasons=(error.cause,), **about)
    outputs = tuple(stat.result() for stat in stats.values())
    flips, drop = classes.flips(), classes.drop()
    real = reference.source is ImageSource.REAL
    judged = judge(
        outputs, flips, about["limits"], drop=drop, golden=not real, allowed=criteria.allowed(reference.source)
    )
    accuracies = classes.accuracies()
    return ParityRecord(
        verdict=judged.verdict,
        numerical=judged.numerical,
        bounds=judged.bounds,
        reasons=judged.reasons,
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
