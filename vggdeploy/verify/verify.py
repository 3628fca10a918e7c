"""Prove a bundle again, on this machine: what ``vggdeploy verify`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vggdeploy.bundle import REFERENCE, Bundle, Manifest, Variant, update_bundle
from vggdeploy.bundle.store import now
from vggdeploy.errors import BuildError, IncompatibleError, ParityError, TargetError, UsageError, counted
from vggdeploy.parity import Reference, reference_outputs
from vggdeploy.parity.anchor import check_anchor
from vggdeploy.parity.reference import GOLDEN, golden_reference
from vggdeploy.records import Check, FleetTarget, LayerReport, ParityRecord, ParityReport
from vggdeploy.runtime import backend_for, open_session, runnable
from vggdeploy.runtime.registry import get_backend
from vggdeploy.system.files import check_writable
from vggdeploy.system.optional import installed, require
from vggdeploy.types import Device, OnProgress, Verdict, silent
from vggdeploy.verify.consistency import check_accuracy, check_manifest, check_preprocessing
from vggdeploy.verify.fleet.fleet import FleetOptions, prove_fleet
from vggdeploy.verify.prove import Limits, prove, with_parity
from vggdeploy.verify.samples import DEFAULT_SAMPLES, Samples, open_samples

_EXAMINED = 2  # golden images on which the layers of a file that passes are compared: its numbers are what is looked at
ONLY_GOLDEN = "golden"  # in place of a data set's name
_SLIM = "this slim bundle has no FP32 reference here: only its answers to the golden pair are compared with"


@dataclass(frozen=True)
class VerifyOptions:
    """Which variants are proven, on which images, and how strictly.

    Attributes:
        variants, backends: names; default all.
        device: where the variants run; default each backend's first. The reference stays on its own.
        data: a data set's name, or ``folder:PATH``; default the one that the model was trained on. ``golden`` for the
            golden pair alone.
        samples: how many test images; None for all.
        data_dir: where the data set is; default as `vggdeploy.data.loaders.open_split`.
        threads: CPU threads of each session; default the backend's own choice.
        record: write the verdicts to the bundle's manifest.
        limits: in place of the manifest's thresholds, for this run.
        layers: look for the layer at which each variant that fails leaves the reference.
        strict_preprocess: also compare what images become on this machine with the golden arrays, and with torchvision.
        fleet: also run the golden pair on targets that are not this machine.
    """

    variants: Sequence[str] = ()
    backends: Sequence[str] = ()
    device: Device | None = None
    data: str = ""
    samples: int | None = DEFAULT_SAMPLES
    data_dir: Path | None = None
    threads: int | None = None
    record: bool = False
    limits: Limits | None = None
    layers: bool = False
    strict_preprocess: bool = False
    fleet: FleetOptions | None = None


def verify_bundle(
    bundle: Bundle, options: VerifyOptions = VerifyOptions(), *, on_progress: OnProgress = silent
) -> ParityReport:
    """Prove the variants again, here: on the golden pair, and on real test images where torch and a data set are.

    The reference itself is checked against the golden outputs too: another torch or CPU must not move it. It runs once
    over the images; its answers are kept (on disk, where they are many) and serve every variant. Images are prepared a
    batch at a time, so memory does not grow with their number.

    What the manifest says of the network, its preprocessing and its labels is compared with the checkpoint, and the
    labels with the classes of the data set that it was trained on.

    A slim bundle has no reference: its golden pair is the whole proof, and the report says so.

    Raises:
        BundleError: ``data`` or ``layers`` for a slim bundle.
        UsageError: an unknown name, no variant for those backends, or fewer than one sample.
        DataError: the data set cannot be found.
        IncompatibleError: a data set or ``layers`` was asked for, and what reads it is not installed.
    """
    if bundle.manifest.origin is not None and (options.layers or options.data not in ("", ONLY_GOLDEN)):
        bundle.manifest.reference()  # says why there is none
    if options.record:
        check_writable(bundle.root)
    if options.layers:
        for module in ("torch", "onnx"):
            require(module, to="compare layers", extra="train")
    if options.samples is not None and options.samples < 1:
        raise UsageError(f"{options.samples} samples were asked for", "give at least 1, for example --samples 1000")
    threads = options.threads
    wanted = _wanted(bundle.manifest, options.variants, options.backends)
    references = [golden_reference(bundle)]
    chosen, notes = _choose_samples(bundle, options)
    if chosen is not None:
        references.append(_run_reference(bundle, chosen, threads, on_progress))
    records: list[ParityRecord] = []
    for variant in wanted:
        against = references[:1] if variant.name == REFERENCE else references
        records += prove(bundle, variant, against, threads, on_progress, options.limits, options.device)
    if bundle.manifest.origin is not None:
        records = [msgspec.structs.replace(r, reasons=(*r.reasons, _SLIM)) for r in records]
    else:
        records, unread = _examined(bundle, records, threads, on_progress)
        notes += unread
    if options.record:
        with update_bundle(bundle) as draft:
            draft.manifest = with_parity(bundle.manifest, records)
    checks = _check_bundle(bundle, chosen, references[1:], options.strict_preprocess, on_progress)
    layers, untaken = _take_apart(bundle, records, threads, on_progress) if options.layers else ((), ())
    fleet: tuple[FleetTarget, ...] = ()
    if options.fleet is not None:
        candidates = [variant for variant in wanted if variant.name != REFERENCE]
        fleet = prove_fleet(bundle, candidates, options.fleet, on_progress=on_progress)
    return ParityReport(
        bundle=str(bundle.root),
        created=now(),
        variants=tuple(records),
        layers=layers,
        checks=checks,
        notes=(*notes, *untaken),
        fleet=fleet,
    )


def exit_code(report: ParityReport) -> int:
    """0 when nothing failed and everything that ran was decided; 3 for a failure of either verdict; 4 when numerical parity
    passed everywhere and a bound is open: a target that was not shown to be met; 5 when nothing ran at all. A variant that
    cannot run here, among others that can, is not a failure here."""
    codes = {
        Verdict.PASS: 0,
        Verdict.FAIL: ParityError.exit_code,
        Verdict.INCONCLUSIVE: TargetError.exit_code,
        Verdict.UNPROVEN: IncompatibleError.exit_code,
    }
    return codes[report.verdict]


def _wanted(manifest: Manifest, variants: Sequence[str], backends: Sequence[str]) -> list[Variant]:
    named = {get_backend(name).name for name in backends}
    chosen = [manifest.variant(name) for name in dict.fromkeys(variants)] or list(manifest.variants)
    kept = [v for v in chosen if not named or backend_for(v).name in named]
    if not kept:
        there = ", ".join(sorted({backend_for(v).name for v in chosen}))
        raise UsageError(
            f"no chosen variant runs on {' or '.join(sorted(named))}", f"choose a backend that has one: {there}"
        )
    return kept


def _choose_samples(bundle: Bundle, options: VerifyOptions) -> tuple[Samples | None, tuple[str, ...]]:
    """The images to prove on beside the golden pair, or None; and what has to be said about that."""
    manifest, data = bundle.manifest, options.data
    if data == ONLY_GOLDEN:
        return None, (f"only the {GOLDEN} was looked at, as asked: nothing is promised about flips",)
    if manifest.origin is not None:
        return None, ()  # every record says so
    fitness = runnable(manifest.reference())
    if not fitness.runs:
        if data:
            raise IncompatibleError(f"the reference cannot run on {data}: {fitness.reason}", fitness.fix)
        return None, (f"only the {GOLDEN} was looked at, because the reference cannot run here: {fitness.reason}",)
    if not data and not manifest.dataset:
        return None, (
            f"only the {GOLDEN} was looked at, because no data set is known for this model: name one (--data)",
        )
    dtype = manifest.input.dtype
    chosen = open_samples(
        data or manifest.dataset, manifest, limit=options.samples, data_dir=options.data_dir, dtype=dtype
    )
    return chosen, (chosen.note,) if chosen.note else ()


def _run_reference(bundle: Bundle, chosen: Samples, threads: int | None, on_progress: OnProgress) -> Reference:
    on_progress(None, f"running the FP32 reference on {counted(len(chosen.images), 'image')}")
    with open_session(bundle, bundle.manifest.reference(), threads=threads) as session:
        return reference_outputs(session, chosen.images, data=chosen.data, labels=chosen.labels)


def _check_bundle(
    bundle: Bundle, chosen: Samples | None, references: Sequence[Reference], strict: bool, on_progress: OnProgress
) -> tuple[Check, ...]:
    slim = bundle.manifest.origin is not None
    checks = () if slim else check_manifest(bundle, chosen)
    on_progress(None, "preparing the golden images")
    checks += (check_anchor(bundle),)
    if chosen is not None:
        checks += tuple(check_accuracy(bundle.manifest, chosen.dataset, reference) for reference in references)
    if strict:
        checks += check_preprocessing(bundle)
    return checks


def _examined(
    bundle: Bundle, records: list[ParityRecord], threads: int | None, on_progress: OnProgress
) -> tuple[list[ParityRecord], tuple[str, ...]]:
    """The records; those of an ONNX variant whose answers pass fail where a layer of the file is not the checkpoint's: an
    activation, a padding or coarser weights can be too small a fault for any distance.

    Of an INT8 or FP8 file only operations and weights count: its biases and ranges follow its calibration images, and how
    much they may is a question of statistics, which a file without a fault must not fail for.
    """
    passing = [v for v in bundle.manifest.candidates() if v.format == "onnx" and _passes(records, v)]
    missing = [name for name in ("torch", "onnx") if passing and not installed(name)]
    if missing:
        return records, (f"the layers of the ONNX files were not compared: {' and '.join(missing)} is not installed",)
    notes: list[str] = []
    for variant in passing:
        from vggdeploy.verify.localise import localise  # late: it needs torch and onnx

        on_progress(None, f"comparing the layers of {variant.name} with the checkpoint's")
        try:
            certain = variant.precision.quantised
            found = localise(bundle, variant.name, threads=threads, images=_EXAMINED, certain=certain)
        except BuildError as error:
            notes.append(f"the layers of {variant.name} were not compared: {error.cause}")
            continue
        if found.culprit is not None:
            records = [_failed(r, found.reason) if r.variant == variant.name else r for r in records]
    return records, tuple(notes)


def _passes(records: Sequence[ParityRecord], variant: Variant) -> bool:
    verdicts = {r.verdict for r in records if r.variant == variant.name}
    return bool(verdicts) and not verdicts & {Verdict.FAIL, Verdict.UNPROVEN}


def _failed(record: ParityRecord, reason: str) -> ParityRecord:
    return record.failed((reason, *record.reasons))


def _take_apart(
    bundle: Bundle, records: Sequence[ParityRecord], threads: int | None, on_progress: OnProgress
) -> tuple[tuple[LayerReport, ...], tuple[str, ...]]:
    """Every variant that failed, once; and a note for each that cannot be taken apart: its verdict stands all the same."""
    from vggdeploy.verify.localise import localise  # late: it needs onnx

    reports, notes = [], []
    for name in dict.fromkeys(r.variant for r in records if r.verdict is Verdict.FAIL):
        on_progress(None, f"looking for the layer at which {name} leaves the reference")
        try:
            reports.append(localise(bundle, name, threads=threads))
        except (UsageError, BuildError) as error:
            notes.append(f"no layers of {name}: {error.cause}; {error.hint}")
    return tuple(reports), tuple(notes)
