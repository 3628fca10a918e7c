"""One trial of a search: a narrower network, fine-tuned, and what each of its variants is worth."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vggdeploy.bench.candidates import Entry
from vggdeploy.bench.rounds import Plan, measure
from vggdeploy.build.engines import build_into
from vggdeploy.build.request import BuildPlan
from vggdeploy.build.targets import resolve_targets
from vggdeploy.build.tensorrt import open_library
from vggdeploy.bundle import REFERENCE, Bundle, Variant
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, read_checkpoint
from vggdeploy.data.loaders import Images
from vggdeploy.errors import IncompatibleError, MissingDependencyError, ParityError, TargetError, UsageError
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.model.layers import summarise
from vggdeploy.model.vgg import VGG
from vggdeploy.model.weights import load_model
from vggdeploy.optimize.fine_tune import ChangedNetwork, restructure
from vggdeploy.optimize.held_out import HeldOut, origin_of
from vggdeploy.optimize.optimize import BUNDLE_STEPS
from vggdeploy.optimize.steps.structure import SCORED, SENSED
from vggdeploy.optimize.steps.widths import Widths
from vggdeploy.optimize.tuning import Hits, TuningJob, hits_of, unpack
from vggdeploy.optimize.variants import StepContext
from vggdeploy.parity.metrics import paired_drop
from vggdeploy.records import AccuracyDrop, BenchRow, Candidate, Goal, StepRecord, to_json
from vggdeploy.runtime import backend_for, open_session, runnable
from vggdeploy.runtime.registry import Backend, default_device, get_engine
from vggdeploy.search.goals import cost, misses
from vggdeploy.spec import ModelSpec
from vggdeploy.system.files import atomic_write, link_tree
from vggdeploy.system.machine import usable_cores
from vggdeploy.train.distill import Teacher
from vggdeploy.train.environment import pick_device
from vggdeploy.types import OnProgress
from vggdeploy.verify.samples import to_input

ORIGINAL = "onnx-fp32"  # of the network as it was trained: what every candidate is measured beside
_BATCH = 64
_SECONDS, _ROUNDS = 1.0, 12  # of each variant; they take turns
_GAIN = 1.03  # what fewer threads have to be faster by, to be worth remembering


@dataclass
class Original:
    """The network that was trained: its checkpoint (which carries its own accuracy), its data, its plain variant, how much
    each of its channels and layers matters, and itself as a teacher. All of it is found out once."""

    checkpoint: Path
    data: HeldOut
    bundle: Bundle
    scores: Mapping[str, Any] = field(repr=False)
    sensitivity: dict[str, dict[int, float]] = field(repr=False)
    teacher: Teacher

    @property
    def spec(self) -> ModelSpec:
        return self.bundle.manifest.spec

    def hits(self, split: str) -> Hits:
        """Which images of a split the original has right."""
        origin = read_checkpoint(self.checkpoint, check_weights=False).origin
        found = unpack(origin.hits[split], len(self.data.splits[split])) if origin else None
        assert found is not None  # noqa: S101  # `prepare` put it there
        return found


def prepare(
    source: Path,
    home: Path,
    *,
    limit: float,
    dataset: str,
    data_dir: Path | None,
    work: StepContext,
    on_progress: OnProgress,
) -> Original:
    """What a search needs of the network it starts from, in ``home``. ``limit``: the accuracy that may be lost, a fraction.

    Raises:
        DataError: no data set is known, or its classes are not the model's.
        TargetError: its images are too few to show that a network keeps to the limit.
        MissingDependencyError: Torch-Pruning is not installed.
    """
    from vggdeploy.optimize.steps.prune import measure_sensitivity, taylor_scores  # late: Torch-Pruning

    checkpoint = read_checkpoint(source)
    data = HeldOut.of(checkpoint, dataset=dataset, data_dir=data_dir)
    data.check_shows(limit)
    model = load_model(source)
    root = home / "original"
    if not root.exists():
        on_progress(None, "measuring the accuracy of the original")
        origin = origin_of(checkpoint, source, data, model)
        link_tree(source, root)
        atomic_write(root / CHECKPOINT_NAME, to_json(msgspec.structs.replace(checkpoint, origin=origin)))
    on_progress(None, "scoring channels")
    scores = taylor_scores(model, data.batches("train", SCORED))
    on_progress(None, "measuring how sensitive each layer is")
    sensitivity = measure_sensitivity(model, scores, data.batches("validation", SENSED))
    bundle = _bundle(root, home / "original-bundle", work, on_progress)
    teacher = Teacher(str(root), labels=checkpoint.labels, preprocess=checkpoint.preprocess, device=pick_device(None))
    return Original(root, data, bundle, scores, sensitivity, teacher)


def build_network(original: Original, output: Path, widths: Widths, job: TuningJob) -> StepRecord:
    """The original at other widths, fine-tuned, as a checkpoint at ``output``. Errors: those of `restructure`."""
    from vggdeploy.optimize.steps.prune import prune

    def change(model: VGG, data: HeldOut) -> ChangedNetwork:
        return ChangedNetwork(prune(model, widths, original.scores), widths=widths)

    return restructure("prune", original.checkpoint, output, change, job)


def candidates(
    original: Original,
    checkpoint: Path,
    output: Path,
    goal: Goal,
    target: SearchTarget,
    number: int,
    work: StepContext,
    on_progress: OnProgress,
) -> list[Candidate]:
    """The variants of a checkpoint, as a bundle at ``output``: their accuracy against the original's, their size, and, where
    the target is this machine, their speed in turns with the original. A step that this machine cannot make, or that fails
    its proof, gives none."""
    bundle = _bundle(checkpoint, output, work, on_progress, target)
    summary = summarise(bundle.manifest.spec)
    made = []
    speeds = _speeds(original, bundle, work.threads, on_progress) if target.measured else {}
    for variant in filter(target.stands_for, _runnable(bundle)):
        on_progress(None, f"accuracy of {variant.name} on the validation split")
        row = speeds.get(variant.name)
        one = Candidate(
            trial=number,
            variant=variant.name,
            backend=backend_for(variant).name,
            precision=variant.precision,
            threads=row.threads if row else 0,
            bytes=bundle.size(variant),
            macs=summary.macs,
            cost=cost(summary.macs, summary.parameters, None if target.measured else variant.precision),
            drop=drop_of(original, bundle, variant, "validation", work),
            latency_ms=row.latency_ms if row else None,
            ratio=row.ratio if row else None,
            ratio_low=row.low if row else None,
            ratio_high=row.high if row else None,
        )
        made.append(msgspec.structs.replace(one, misses=misses(goal, one)))
    return made


def drop_of(original: Original, bundle: Bundle, variant: Variant, split: str, work: StepContext) -> AccuracyDrop:
    """The paired drop of a variant, run from its shipped bytes, against the network that was trained."""
    return paired_drop(original.hits(split), variant_hits(bundle, variant, original.data.splits[split], work.threads))


def variant_hits(bundle: Bundle, variant: Variant, images: Images, threads: int | None) -> Hits:
    """Which images a variant has right, run from its shipped bytes."""
    manifest = bundle.manifest
    places = [np.arange(start, min(start + _BATCH, len(images))) for start in range(0, len(images), _BATCH)]
    with open_session(bundle, variant, threads=threads) as session:
        return hits_of(session, ((to_input(images.batch(part), manifest), images.labels[part]) for part in places))


@dataclass(frozen=True)
class Speed:
    threads: int
    latency_ms: float
    ratio: float
    low: float
    high: float


def _speeds(original: Original, bundle: Bundle, threads: int | None, on_progress: OnProgress) -> dict[str, Speed]:
    """Variant → its speed at a batch of one, in turns with the original, which has all threads; the variants have all, and
    each power of two below."""
    on_progress(None, "measuring the variants in turns with the original")
    plain, most = original.bundle.manifest.variant(ORIGINAL), threads or usable_cores()
    entries = [Entry(original.bundle, plain, default_device(backend_for(plain)), "original")]
    counts = {f"{v.name} {count or most}": (v, count) for v in _runnable(bundle) for count in (None, *fewer(most))}
    entries += [Entry(bundle, v, default_device(backend_for(v)), name, count) for name, (v, count) in counts.items()]
    images = original.data.splits["validation"]
    pool = to_input(images.batch(np.arange(min(_BATCH, len(images)))), bundle.manifest)
    done = measure(entries, pool, Plan((1,), _SECONDS, _ROUNDS, threads))
    rows = {row.variant: row for row in done.rows}
    return fastest((v.name, count or most, rows[name]) for name, (v, count) in counts.items())


def fastest(rows: Iterable[tuple[str, int, BenchRow]]) -> dict[str, Speed]:
    """Variant → its fastest row, of (variant, threads, row). The first of a variant stands until one beats it clearly."""
    best: dict[str, Speed] = {}
    for name, threads, row in rows:
        if name not in best or row.ratio > _GAIN * best[name].ratio:
            best[name] = Speed(threads, row.p50_ms, row.ratio, row.ratio_low, row.ratio_high)
    return best


def fewer(threads: int) -> list[int]:
    """Powers of two below a number of threads: a small network is over before all cores of a large machine have met."""
    return [2**n for n in range(threads.bit_length()) if 2**n < threads]


def _runnable(bundle: Bundle) -> Sequence[Variant]:
    return [v for v in bundle.manifest.variants if v.name != REFERENCE and runnable(v).runs]


def _bundle(
    checkpoint: Path, output: Path, work: StepContext, on_progress: OnProgress, target: SearchTarget | None = None
) -> Bundle:
    """The bundle of a checkpoint: with every variant for ``target`` that can be made and proven here."""
    if output.exists():
        shutil.rmtree(output)
    options = ExportOptions(
        formats=target.formats if target else (ORIGINAL,),
        samples=work.samples,
        data_dir=work.data_dir,
        threads=work.threads,
    )
    bundle = export_bundle(checkpoint, output, options, on_progress=on_progress)
    for name in target.steps if target else ():
        try:
            bundle = BUNDLE_STEPS[name](bundle, work)
        except MissingDependencyError:
            raise
        except (IncompatibleError, ParityError, TargetError) as error:
            on_progress(None, f"{name} is left out: {error.cause}")
    return bundle


CPU = "cpu"


@dataclass(frozen=True)
class SearchTarget:
    """``engine``: None for the CPUs. ``formats`` and ``steps`` make the variants of a trial; ``int8`` is the flavour of
    quantisation. Of an engine, the ONNX that it is built from stands for it: it has the same weights and the same Q/DQ
    pairs, and this machine can run it.
    """

    formats: tuple[str, ...]
    steps: tuple[str, ...]
    int8: str
    engine: Backend | None = None
    gpus: tuple[str, ...] = ()

    @classmethod
    def parse(cls, goal: Goal) -> SearchTarget:
        """``cpu``, ``tensorrt-rtx``, ``tensorrt-rtx:sm89,sm120``, ``tensorrt``.

        Raises:
            UsageError: another name, or a latency where none can be measured.
            MissingDependencyError: the engine's library is not installed.
        """
        name, _, gpus = goal.target.partition(":")
        if name == CPU:
            if gpus:
                raise UsageError(
                    f"the target {goal.target} asks for other CPUs", "search on this machine's: --target cpu"
                )
            return cls(("onnx-fp32",), tuple(BUNDLE_STEPS), "cpu")
        engine = get_engine(name)
        if goal.latency_ms is not None:
            raise UsageError(
                f"{goal.target} is not measured here, so no limit of its latency can be held",
                "leave --max-latency-ms out, and bench the engine on its GPU",
            )
        if "cpu" not in engine.builds_on and gpus:
            raise UsageError(
                f"{engine.name} builds for the GPU it runs on, and takes no others", f"--target {engine.name}"
            )
        wanted = tuple(part.strip() for part in gpus.split(",") if part.strip())
        library = open_library(engine)
        if wanted:
            resolve_targets(library, wanted)
        return cls(("onnx-fp32", "onnx-fp16"), ("int8",), "tensorrt", engine, wanted)

    @property
    def measured(self) -> bool:
        return self.engine is None

    def stands_for(self, variant: Variant) -> bool:
        """Whether a variant is a candidate: every one on the CPUs; those that an engine can be built from otherwise."""
        return self.engine is None or variant.name in ("onnx-fp16", "onnx-int8-symmetric")

    def build(self, bundle: Bundle, chosen: str) -> None:
        """Add the engine of the winner to its bundle. Errors: those of `build_into`."""
        if self.engine is not None:
            precision = bundle.manifest.variant(chosen).precision
            build_into(bundle, BuildPlan(self.engine.name, precision, targets=self.gpus or None))
