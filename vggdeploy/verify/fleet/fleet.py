"""The golden pair on every target, judged here: children only compute, and what they say of themselves decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import ForeignModelError, UsageError, VggdeployError, one_line
from vggdeploy.model.formats.admission import check_variant
from vggdeploy.parity.compare import compare_answers, unproven
from vggdeploy.parity.criteria import criteria_of
from vggdeploy.parity.reference import Array, golden_pair
from vggdeploy.records import FleetTarget, ParityRecord
from vggdeploy.types import OnProgress, Verdict, silent
from vggdeploy.verify.fleet.exchange import About, Exchange, Job, Rows
from vggdeploy.verify.fleet.process import run_child
from vggdeploy.verify.fleet.target import Target
from vggdeploy.verify.prove import Limits

SECONDS = 600.0


@dataclass(frozen=True)
class FleetOptions:
    """Where the golden pair runs. ``seconds`` are those that one variant may take on one target: emulation is slow."""

    targets: tuple[Target, ...]
    seconds: float = SECONDS
    threads: int | None = None
    limits: Limits = field(default_factory=Limits)


def prove_fleet(
    bundle: Bundle, variants: Sequence[Variant], options: FleetOptions, *, on_progress: OnProgress = silent
) -> tuple[FleetTarget, ...]:
    """Every variant on every target. A wrong answer is a failure; what cannot run, crashes or takes too long is unproven.

    Raises:
        UsageError: there is no variant to prove.
    """
    if not variants:
        raise UsageError(
            "there is no variant to prove on a fleet", "choose one that is not the reference: --variant NAME"
        )
    found = []
    for target in options.targets:
        on_progress(None, f"proving on {target.title}")
        found.append(_Proof(bundle, target, options).of(variants))
    return tuple(found)


def batches_of(variant: Variant, samples: int) -> dict[int, list[Rows]]:
    """Batch size → the rows of each batch: in the smallest batches that the variant takes, and all at once.

    A rest that is smaller than the variant takes is left out.
    """
    least = variant.batch.min
    return {
        size: [(start, min(start + size, samples)) for start in range(0, samples, size) if samples - start >= least]
        for size in sorted({least, min(variant.batch.max, samples)})
    }


@dataclass
class _Answers:
    """What came of one variant: (batch size, rows) → its outputs by name; why that is not all; and what is to be said.

    ``foreign``: its file is not what vggdeploy writes, and was sent nowhere.
    """

    batches: dict[tuple[int, Rows], dict[str, Array]] = field(default_factory=dict)
    trouble: str = ""
    remark: str = ""
    foreign: bool = False


class _Proof:
    """All variants on one target."""

    def __init__(self, bundle: Bundle, target: Target, options: FleetOptions) -> None:
        self._bundle, self._target, self._options = bundle, target, options
        inputs, self._outputs = bundle.golden()
        self._images = inputs[bundle.manifest.input.name]
        self._about = About((), {})

    def of(self, variants: Sequence[Variant]) -> FleetTarget:
        missing = self._target.missing()
        here = f"{missing.reason}; {missing.fix}" if missing else ""
        answers = {v.name: self._foreign(v) or _Answers(trouble=self._target.refuses(v) or here) for v in variants}
        waiting = [v for v in variants if not answers[v.name].trouble]
        while waiting:
            waiting = self._run(waiting, answers)
        records = tuple(self._judged(v, answers[v.name]) for v in variants)
        about = self._about
        return FleetTarget(
            target=self._target.name, title=self._target.title, isa=about.isa, tools=about.tools, variants=records
        )

    def _foreign(self, variant: Variant) -> _Answers | None:
        try:
            check_variant(self._bundle, variant)
        except ForeignModelError as error:
            return _Answers(trouble=error.cause, foreign=True)
        return None

    def _run(self, variants: Sequence[Variant], answers: Mapping[str, _Answers]) -> list[Variant]:
        """One child for all of them; returns those that are to have another. It died with the first that it left."""
        plan = [[(size, r) for size, rows in batches_of(v, len(self._images)).items() for r in rows] for v in variants]
        with self._exchange(variants, [[rows for _, rows in batches] for batches in plan]) as exchange:
            trouble = run_child(self._target, exchange, len(variants), self._options.seconds)
        for (index, batch, output), array in exchange.answers.items():
            outputs = answers[variants[index].name].batches.setdefault(plan[index][batch], {})
            outputs[self._bundle.manifest.outputs[output].name] = array
        for index, variant in enumerate(variants):
            answers[variant.name].trouble = exchange.refused.get(index, "")
            answers[variant.name].remark = exchange.remarks.get(index, "")
        self._about = exchange.about or self._about
        left = [v for index, v in enumerate(variants) if index not in exchange.finished]
        # A child that dies before it says what it runs on would die in the same way again.
        ended = left if exchange.about is None or exchange.failed else left[:1]
        for variant in ended:
            answers[variant.name].trouble = one_line(trouble)
        return left[len(ended) :]

    def _exchange(self, variants: Sequence[Variant], batches: Sequence[Sequence[Rows]]) -> Exchange:
        bundle, library = self._bundle, self._target.library()
        job = Job(
            bundle=str(bundle.root.resolve()),
            digest=bundle.manifest.digest,
            variants=tuple(v.name for v in variants),
            batches=tuple(map(tuple, batches)),
            input=bundle.manifest.input,
            outputs=bundle.manifest.outputs,
            threads=self._options.threads,
            provider=self._target.provider,
            library=library.as_uri() if library else "",
        )
        models = [bundle.main_file(v) for v in variants]
        return Exchange(job, self._images, models, scripts=library.parent if library else None)

    def _judged(self, variant: Variant, found: _Answers) -> ParityRecord:
        """The worst of its batch sizes. Answers that are not all there can fail, and never pass."""
        if found.foreign:
            return unproven(variant, found.trouble, self._target.name).failed((found.trouble,))
        sizes = batches_of(variant, len(self._images))
        records = [record for size in sizes if (record := self._compared(variant, found, size))]
        failed = next((r for r in records if r.verdict is not Verdict.PASS), None)
        if failed is not None:
            return failed
        due = [(size, rows) for size, batches in sizes.items() for rows in batches]
        complete = all(len(found.batches.get(key, ())) == len(self._outputs) for key in due)
        if found.trouble or not records or not complete:
            return unproven(variant, found.trouble or "not every image was answered", self._target.name)
        worst = max(records, key=lambda r: max(output.relative_l2 for output in r.outputs))
        data = f"{golden_pair(self._images, {}).data}, in batches of {' and '.join(map(str, sizes))}"
        return msgspec.structs.replace(worst, data=data, reasons=tuple(filter(None, [found.remark])))

    def _compared(self, variant: Variant, found: _Answers, size: int) -> ParityRecord | None:
        """The answers in batches of one size, as far as they came without a gap; None where the first is missing."""
        batches: list[dict[str, Array]] = []
        stop = 0
        for rows in batches_of(variant, len(self._images))[size]:
            answer = found.batches.get((size, rows), {})
            if len(answer) < len(self._outputs):
                break
            batches.append(answer)
            stop = rows[1]
        if not batches:
            return None
        reference = golden_pair(self._images[:stop], {name: array[:stop] for name, array in self._outputs.items()})
        criteria = self._options.limits.over(criteria_of(self._bundle, variant))
        record = compare_answers(
            map(_finite, batches), reference, self._bundle, variant, self._target.name, criteria=criteria
        )
        return msgspec.structs.replace(record, data=f"{record.data}, in batches of {size}", tools=self._about.tools)


def _finite(answers: Mapping[str, Array]) -> Mapping[str, Array]:
    """
    Raises:
        VggdeployError: one holds a NaN or infinity.
    """
    for name, array in answers.items():
        if not np.isfinite(array).all():
            raise VggdeployError(f"it gave a NaN or infinity in '{name}'", "use a variant of higher precision")
    return answers
