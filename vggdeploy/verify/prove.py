"""Proving variants against references, and the limits that a caller sets for the verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec

from vggdeploy.bundle import REFERENCE, Bundle, Manifest, Variant
from vggdeploy.bundle.precision import by_type
from vggdeploy.errors import ForeignModelError, ParityError, UsageError
from vggdeploy.parity import Reference, check_golden, compare
from vggdeploy.parity.batches import fitting, promised
from vggdeploy.parity.compare import unproven
from vggdeploy.parity.criteria import Criteria, criteria_of
from vggdeploy.records import ParityRecord
from vggdeploy.runtime import backend_for, open_session, runnable
from vggdeploy.runtime.base import Hint
from vggdeploy.runtime.registry import default_device
from vggdeploy.system.machine import release_memory
from vggdeploy.system.optional import version
from vggdeploy.types import Device, ImageSource, OnProgress, Verdict
from vggdeploy.verify.readback import check_precision, check_sparsity, read_products

_TOOLS = (
    *("vggdeploy", "torch", "torchvision", "onnx", "onnxscript", "numpy", "pillow", "safetensors"),
    *("onnxruntime", "onnxruntime-gpu", "openvino", "nncf", "tensorrt", "tensorrt-rtx", "mlcommons-loadgen"),
)


def tool_versions() -> dict[str, str]:
    """The versions of all that takes part, for the records."""
    versions = {name: version(name) for name in _TOOLS}
    return {name: text for name, text in versions.items() if text}


def prove(
    bundle: Bundle,
    variant: Variant,
    references: Iterable[Reference],
    threads: int | None,
    on_progress: OnProgress,
    limits: Limits | None = None,
    device: Device | None = None,
    memory: int | None = None,
) -> list[ParityRecord]:
    """The variant against each reference, or one ``unproven`` record where it cannot run.

    The golden images run in batches of every size that `promised` names, as far as ``memory`` allows (see `fitting`), and
    again and again; of real images the first batches have those sizes. The reference itself only has to be what it was.

    Its precision is read back from the file first, and so is what it says of 2:4 layers. One that is not what was asked for
    fails every record; a file that is not what vggdeploy writes of the network fails without being opened.
    """
    where = device or default_device(backend_for(variant))
    on_progress(None, f"proving {variant.name}")
    try:
        products = read_products(bundle, variant)
        check_precision(variant, products)
        check_sparsity(bundle, variant)
        wrong = ""
    except ParityError as error:
        wrong = error.cause
    except ForeignModelError as error:  # no library opens it, so nothing was compared
        return [unproven(variant, error.cause, where).failed((error.cause,))]
    fitness = runnable(variant, where)
    if fitness.runs:
        criteria = (limits or Limits()).over(criteria_of(bundle, variant))
        sizes, note = (
            fitting(bundle.manifest, promised(*variant.profiles), memory) if variant.name != REFERENCE else ((), "")
        )
        hint: Hint = "memory" if "memory" in backend_for(variant).hints else "latency"
        with open_session(bundle, variant, device=where, threads=threads, hint=hint) as session:
            records = [
                check_golden(
                    session, bundle, variant, where, sizes=sizes, criteria=criteria, stress=True, repeated=bool(sizes)
                )
                if reference.source is ImageSource.GOLDEN
                else compare(session, reference, bundle, variant, where, criteria=criteria, sizes=sizes)
                for reference in references
                if reference.source is not ImageSource.SYNTHETIC
            ]
        records = [_with_note(record, note) if record.batches else record for record in records]
        release_memory()
    else:
        records = [unproven(variant, f"{fitness.reason}; {fitness.fix}", where)]
    counts = by_type(products or ())
    return [_with_products(record, counts, wrong) for record in records]


def _with_note(record: ParityRecord, note: str) -> ParityRecord:
    return msgspec.structs.replace(record, reasons=(*record.reasons, note)) if note else record


def _with_products(record: ParityRecord, products: dict[str, int], wrong: str) -> ParityRecord:
    if not wrong:
        return msgspec.structs.replace(record, products=products)
    return msgspec.structs.replace(record.failed((wrong, *record.reasons)), products=products)


def with_parity(manifest: Manifest, records: Sequence[ParityRecord], note: str = "") -> Manifest:
    """The manifest with the last record of each variant (the one with the most images) written to it, with what only the
    golden pair was asked; and the distances of all its records where none stand there yet. Who fails one of them fails."""
    changed = {}
    for name in dict.fromkeys(r.variant for r in records if r.variant != REFERENCE):
        own = [r for r in records if r.variant == name]
        asked = next((r for r in own if r.batches), own[-1])
        reasons = (*dict.fromkeys((*own[-1].reasons, *asked.reasons)), *((note,) if note else ()))
        written = msgspec.structs.replace(
            own[-1],
            reasons=reasons,
            tools=tool_versions(),
            batches=asked.batches,
            stress=asked.stress,
            repeats=asked.repeats,
        )
        variant = manifest.variant(name)
        passed = all(r.verdict is not Verdict.FAIL for r in own)
        if (
            not passed and written.verdict is not Verdict.FAIL
        ):  # a batch size, say, that only the golden pair was asked in
            written = written.failed(written.reasons)
        distances = variant.distances or (tuple(d for r in own for d in r.distances) if passed else ())
        changed[name] = msgspec.structs.replace(variant, parity=written, distances=distances)
    return manifest.with_variants(*changed.values())


@dataclass(frozen=True)
class Limits:
    """As `Thresholds` has them; None for the manifest's.

    Raises:
        UsageError: one that is no distance, no cosine or no fraction.
    """

    relative_l2: float | None = None
    cosine: float | None = None
    flip_rate: float | None = None
    accuracy_drop: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            lowest = -1 if name == "cosine" else 0
            if value is not None and not lowest <= value <= 1:  # a NaN, too
                raise UsageError(
                    f"the limit for the {name.replace('_', ' ')} is {value:g}, which is out of range",
                    f"give a number from {lowest} to 1",
                )

    @classmethod
    def in_percent(
        cls,
        *,
        tolerance: float | None = None,
        min_cosine: float | None = None,
        max_flips: float | None = None,
        max_accuracy_drop: float | None = None,
    ) -> Limits:
        """As the command line has them: flips in percent, the accuracy drop in percentage points.

        Raises:
            UsageError: one that makes no sense, in the units of the option.
        """
        percents = {"--max-flips": (max_flips, "percent"), "--max-accuracy-drop": (max_accuracy_drop, "points")}
        for option, (value, unit) in percents.items():
            if value is not None and not 0 <= value <= 100:
                raise UsageError(
                    f"{option} is {value:g}, which is out of range",
                    f"give {unit} from 0 to 100, for example {option} 0.5",
                )
        if tolerance is not None and not 0 <= tolerance <= 1:
            raise UsageError(
                f"--tolerance is {tolerance:g}, which is out of range",
                "give a relative L2 distance from 0 to 1: --tolerance 0.001",
            )
        if min_cosine is not None and not -1 <= min_cosine <= 1:
            raise UsageError(
                f"--min-cosine is {min_cosine:g}, which is out of range",
                "give a cosine from -1 to 1: --min-cosine 0.999",
            )
        return cls(
            relative_l2=tolerance,
            cosine=min_cosine,
            flip_rate=None if max_flips is None else max_flips / 100,
            accuracy_drop=None if max_accuracy_drop is None else max_accuracy_drop / 100,
        )

    def over(self, criteria: Criteria) -> Criteria:
        """The bundle's criteria with these in their place. Who allows a distance allows it whatever was on record."""
        changed = {name: value for name, value in vars(self).items() if value is not None}
        thresholds = msgspec.structs.replace(criteria.thresholds, **changed)
        return replace(criteria, thresholds=thresholds, recorded=() if self.relative_l2 else criteria.recorded)


def refuse_failures(records: Sequence[ParityRecord], hint: str) -> None:
    """
    Raises:
        ParityError: one of the records is a failure.
    """
    for record in records:
        if record.verdict is Verdict.FAIL:
            cause = f"{record.variant} does not compute what was trained: {'; '.join(record.reasons)}"
            raise ParityError(cause, hint)
