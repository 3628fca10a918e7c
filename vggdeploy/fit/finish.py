"""From trained networks to what ships: exported, quantised, proven, measured, chosen, and then judged once on test images."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from vggdeploy.bench.rounds import Plan, measure
from vggdeploy.bundle import Bundle, Variant
from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.data.loaders import open_split
from vggdeploy.errors import ParityError, VggdeployError
from vggdeploy.evaluate.evaluate import EvaluateOptions, evaluate
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.fit.goal import misses, preference, rate_of
from vggdeploy.fit.ladder import Ladder, answers_of
from vggdeploy.fit.latency import entries_of, with_steps
from vggdeploy.fit.material import Material, unpack
from vggdeploy.fit.roof import roof_of
from vggdeploy.optimize.steps.calibration import Int8Options
from vggdeploy.optimize.tuning import Hits
from vggdeploy.optimize.variants import StepContext
from vggdeploy.parity.metrics import paired_drop
from vggdeploy.records import AccuracyDrop
from vggdeploy.records.evaluation import EvaluationReport
from vggdeploy.records.fit import FitGoal, FitRoof, FitTrial, FitVariant
from vggdeploy.runtime import backend_for
from vggdeploy.search.trial import Speed, fastest, fewer, variant_hits
from vggdeploy.system.machine import usable_cores
from vggdeploy.types import OnProgress, Precision
from vggdeploy.verify.samples import to_input

MOST_EXPORTED = 4  # networks that are exported until one holds the goal
_POOL = 64
_SECONDS, _ROUNDS, _PROCESSES = 0.6, 8, 2  # of each variant; they take turns


@dataclass
class Yardstick:
    """The network that a drop of accuracy counts from: the teacher, or the most accurate trial. ``hits`` are on the validation
    images; ``counted`` are those of them that it did not learn from, None where that is all."""

    checkpoint: Path
    hits: Hits = field(repr=False)
    counted: Hits | None = field(default=None, repr=False)

    def drop(self, hits: Hits) -> AccuracyDrop:
        """Of a network that has these right of the first ``len(hits)`` validation images."""
        before = self.hits[: len(hits)]
        if self.counted is not None:
            counted = self.counted[: len(hits)]
            before, hits = before[counted], hits[counted]
        if not len(hits):  # nothing can be told
            return AccuracyDrop(lost=0, won=0, samples=0, drop=0.0, lower=-1.0, upper=1.0, p_value=1.0)
        return paired_drop(before, hits)


@dataclass
class Finish:
    """What ends a fit. ``bundles`` are those of the networks that were exported, by trial; ``roof`` is what the winner reaches
    of it, and ``exponent`` that of its learning curve, where the time sufficed for them."""

    material: Material
    ladder: Ladder
    goal: FitGoal
    samples: int | None
    threads: int | None
    on_progress: OnProgress
    notes: list[str] = field(default_factory=list)
    variants: list[FitVariant] = field(default_factory=list)
    bundles: dict[int, Bundle] = field(default_factory=dict)
    roof: FitRoof | None = None
    exponent: float | None = None
    _judged: dict[tuple[int, str], Hits] = field(default_factory=dict, repr=False)

    def choose(
        self, wanted: Sequence[FitTrial], yardstick: Yardstick | None, end: float, asked: Callable[[], bool]
    ) -> FitVariant:
        """The best variant of the first networks of ``wanted``, on validation images; they are exported until one holds the
        goal, or until there is one to ship and it is ``end`` (of the monotonic clock), or an end was ``asked`` for.

        Raises:
            ParityError: no network could be proven.
        """
        failed: VggdeployError | None = None
        for trial in wanted:
            late = (time.monotonic() > end or asked()) and bool(self.variants)
            if late or len(self.bundles) >= MOST_EXPORTED:
                break
            try:
                bundle = self.bundles[trial.number] = self._bundle(trial)
                found = self._variants(trial, bundle, yardstick)
            except VggdeployError as error:  # this network does not ship, whatever its accuracy is; others can
                why = "its proof fails: " if isinstance(error, ParityError) else ""
                self.notes.append(f"trial {trial.number + 1} is left out, {why}{error.cause}")
                failed = error
                continue
            self.variants += found
            if any(not one.misses for one in found) and (asked() or not self._confirmed().misses):
                break
        if not self.variants:
            why = failed.cause if failed else "none of its variants runs here"
            raise ParityError(f"no network could be proven; the last: {why}", "run again with --debug, and report it")
        return self._best() if asked() else self._confirmed()

    def _best(self) -> FitVariant:
        return min(self.variants, key=lambda one: preference(self.goal, one))

    def _confirmed(self) -> FitVariant:
        """The best variant by a second measurement: the first has chosen it, so it was lucky on average. One that is slower
        than thought takes its place among the others with that time."""
        while (best := self._best()).chosen_ms is None:
            self.on_progress(None, f"measuring {best.variant} of trial {best.trial + 1} once more")
            speeds = self._speeds(self.bundles[best.trial], best.variant, (best.threads,))
            again = self._timed(best, speeds[best.variant].latency_ms)
            self.variants[self.variants.index(best)] = msgspec.structs.replace(again, chosen_ms=best.latency_ms)
        return best

    def _bundle(self, trial: FitTrial) -> Bundle:
        self.on_progress(None, f"exporting the network of trial {trial.number + 1}, and proving it")
        output = self.ladder.home / f"bundle-{trial.number}"
        shutil.rmtree(output, ignore_errors=True)
        options = ExportOptions(
            formats=("onnx-fp32",), samples=self.samples, data_dir=self.material.data_dir, threads=self.threads
        )
        bundle = export_bundle(
            self.ladder.path(trial.number, len(trial.rungs)), output, options, on_progress=self.on_progress
        )
        work = StepContext(
            samples=self.samples,
            data_dir=self.material.data_dir,
            threads=self.threads,
            on_progress=self.on_progress,
            int8=Int8Options(targets=("cpu",)),
        )
        bundle, left = with_steps(bundle, work)
        self.notes += [f"trial {trial.number + 1}: {text}" for text in left]
        return bundle

    def _variants(self, trial: FitTrial, bundle: Bundle, yardstick: Yardstick | None) -> list[FitVariant]:
        self.on_progress(None, "measuring the variants in turns")
        most = self.threads or usable_cores()
        found = []
        trained = self._hits(trial)
        images = self.material.data(trial.spec.image_size, 0).validation
        for name, speed in self._speeds(bundle, "", (most, *fewer(most))).items():
            variant = bundle.manifest.variant(name)
            self.on_progress(None, f"accuracy of {name} on the validation images")
            mine = variant_hits(bundle, variant, images, self.threads)
            hits = judged_hits(variant.precision, mine, trained)
            self._judged[trial.number, name] = hits
            one = FitVariant(
                trial=trial.number,
                variant=name,
                backend=backend_for(variant).name,
                precision=variant.precision,
                threads=speed.threads,
                latency_ms=speed.latency_ms,
                bytes=bundle.size(variant),
                verdict=variant.verdict,
                validation=rate_of(int(mine.sum()), len(mine)),
                drop=yardstick.drop(hits) if yardstick is not None else None,
            )
            found.append(self._timed(one, speed.latency_ms))
        return found

    def _speeds(self, bundle: Bundle, variant: str, counts: Sequence[int]) -> dict[str, Speed]:
        """Of a bundle's variants, or of the one that is named, by the fastest of these numbers of threads."""
        images = self.material.data(bundle.manifest.spec.image_size, 0).validation
        entries, found = entries_of(bundle, counts, variant)
        pool = to_input(images.batch(np.arange(min(_POOL, len(images)))), bundle.manifest)
        plan = Plan((1,), _SECONDS, _ROUNDS, self.threads, processes=_PROCESSES)
        done = measure(entries, pool, plan, on_progress=self.on_progress)
        return fastest((name, count, row) for (name, count), row in zip(found, done.rows, strict=True))

    def _timed(self, one: FitVariant, ms: float) -> FitVariant:
        """A variant with a latency, and what it then misses of the goal."""
        hits = self._judged[one.trial, one.variant]
        missed = misses(self.goal, int(hits.sum()), len(hits), one.drop, latency_ms=ms, size=one.bytes)
        return msgspec.structs.replace(one, latency_ms=ms, misses=missed)

    def _hits(self, trial: FitTrial) -> Hits:
        """Of the FP32 network, in all folds."""
        right: Hits = unpack(trial.rungs[-1].answers) == self.material.labels[self.material.judged]
        return right

    def measure_roof(self, won: FitVariant, end: float) -> None:
        """What the winner reaches of this machine's roof, unless it is ``end`` (of the monotonic clock). It decides nothing."""
        if time.monotonic() > end:
            self.notes.append("the roof of the CPUs was not measured: the budget was spent")
            return
        try:
            self.roof = roof_of(self.bundles[won.trial], won, self.material, self.threads, self.on_progress)
        except VggdeployError as error:
            self.notes.append(f"the roof of the CPUs was not measured: {error.cause}")

    def test_hits(self, bundle: Bundle, variant: Variant) -> Hits:
        """Which test images a variant has right."""
        about = bundle.manifest
        images = open_split(self.material.name, "test", about.preprocess, data_dir=self.material.data_dir)
        return variant_hits(bundle, variant, images, self.threads)

    def test_drop(self, won: FitVariant, yardstick: Yardstick) -> AccuracyDrop:
        """The winner against the yardstick on the test images, which decide nothing."""
        bundle = self.bundles[won.trial]
        about = read_checkpoint(yardstick.checkpoint)
        images = open_split(self.material.name, "test", about.preprocess, data_dir=self.material.data_dir)
        before = answers_of(yardstick.checkpoint, images) == images.labels
        return paired_drop(before, self.test_hits(bundle, bundle.manifest.variant(won.variant)))

    def judge(self, won: FitVariant) -> EvaluationReport:
        """The winner, from its shipped bytes, on all test images: once, after everything was decided."""
        self.on_progress(None, "the winner on the test images, which have decided nothing")
        options = EvaluateOptions(
            dataset=self.material.name,
            data_dir=self.material.data_dir,
            variant=won.variant,
            threads=won.threads or self.threads,
        )
        return evaluate(self.bundles[won.trial].root, options, on_progress=self.on_progress)


def judged_hits(precision: Precision, mine: Hits, trained: Hits) -> Hits:
    """What a variant's accuracy and drop are bounded with, of a cross-validation.

    It runs on the first fold alone, whose network ships. In FP32 it computes what was trained, so the FP32 networks of the
    other folds count for it, too. Where it rounds, they do not: what rounding loses was seen on the first fold, and would be
    divided by the number of folds.

    Args:
        mine: which images of the first fold the variant has right.
        trained: which of all folds their FP32 networks have right, those of the first fold first.
    """
    return np.concatenate([mine, trained[len(mine) :]]) if precision is Precision.FP32 else mine
