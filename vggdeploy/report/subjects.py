"""Who a report is about: variants told apart by their bytes, with the verdict and the accuracy that were found of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePath

from vggdeploy.bundle import REFERENCE
from vggdeploy.errors import InputError, one_line
from vggdeploy.records import BenchReport, BenchRow, FreshStart, ParityRecord, ParityReport, ScenarioRow
from vggdeploy.report.documents import Results
from vggdeploy.types import ImageSource, Verdict

_WORST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS, Verdict.UNPROVEN)

Named = BenchRow | ScenarioRow | FreshStart


@dataclass(frozen=True)
class Accuracy:
    """A share of images classified right, on ``data``; the interval where one was recorded."""

    rate: float
    data: str
    samples: int | None = None
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class Loss:
    """How much accuracy a variant lost against the reference, on the same images; fractions.

    ``drop`` is None where the images have no labels: then ``upper`` is the bound of changed top-1 classes, which the loss
    of accuracy cannot exceed, as an image that is lost has changed its class. ``upper`` is a one-sided 95% bound, and
    ``limit`` what it was judged by.
    """

    drop: float | None
    upper: float
    limit: float | None
    data: str
    samples: int


@dataclass
class Subject:
    """One variant's bytes, and what the results say of them.

    ``proofs``: (verdict, (images, device), reasons) of every comparison with the reference, and of what is wrong with its
    bundle's manifest; ``recorded``: the verdicts that benches carried over from the bundle; ``numericals`` and ``bounded``:
    the two verdicts of every comparison that has them.
    """

    variant: str
    sha256: str
    bundle: str
    backend: str = ""
    label: str = ""
    proofs: list[tuple[Verdict, tuple[str, str], tuple[str, ...]]] = field(default_factory=list)
    recorded: list[Verdict] = field(default_factory=list)
    numericals: list[Verdict] = field(default_factory=list)
    bounded: list[Verdict] = field(default_factory=list)
    accuracies: list[Accuracy] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)

    @property
    def loss(self) -> Loss | None:
        """The one of the most images."""
        return max(self.losses, key=lambda loss: loss.samples, default=None)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the comparisons that ran; ``unproven`` where none did."""
        verdicts: list[Verdict] = [verdict for verdict, _, _ in self.proofs if verdict is not Verdict.UNPROVEN]
        if not verdicts or Verdict.FAIL in self.recorded:  # a bench fails a variant whose golden outputs are wrong
            verdicts += self.recorded
        return next((v for v in _WORST if v in verdicts), Verdict.UNPROVEN)

    @property
    def apart(self) -> str:
        """The worst of the numerical verdicts and of the bounds, where the comparisons told them apart."""
        return "; ".join(
            f"{what} {verdict}" for what, verdict in (("numerical", self.numerical), ("bounds", self.bounds)) if verdict
        )

    @property
    def numerical(self) -> Verdict | None:
        return _worst_of(self.numericals)

    @property
    def bounds(self) -> Verdict | None:
        return _worst_of(self.bounded)

    @property
    def why(self) -> str:
        """One line: on what the verdict rests."""
        verdict = self.verdict
        same = [(where, reasons) for v, where, reasons in self.proofs if v is verdict]
        reasons = next((reasons for _, reasons in same if reasons), ())
        if reasons:
            return one_line(reasons[0])
        if same:
            on: dict[str, dict[str, None]] = {}  # the last comparison is the one with the most images
            for (data, device), _ in reversed(same):
                on.setdefault(device, {})[data] = None
            proven = "; ".join(one_line(f"{', '.join(filter(None, data))} on {device}") for device, data in on.items())
            return f"the reference itself; {proven}" if self.variant == REFERENCE else proven
        if verdict is Verdict.UNPROVEN:
            return "none of these results ran it against the reference"
        return "as recorded in the bundle, and checked on its golden pair when it was measured"


def _worst_of(verdicts: list[Verdict]) -> Verdict | None:
    return next((v for v in _WORST if v in verdicts), None)


@dataclass(frozen=True)
class Cast:
    """All subjects of a report, found again by what a record says of itself."""

    subjects: tuple[Subject, ...]

    def find(self, variant: str, sha256: str, bundle: str) -> Subject:
        """The subject of a record. A record of what could not run has no hash: then its bundle tells."""
        same = [s for s in self.subjects if s.variant == variant and (not sha256 or s.sha256 == sha256)]
        if not same:
            raise InputError(f"the results name no {variant} of these bytes", "give files as vggdeploy wrote them")
        return next((s for s in same if s.bundle == bundle), same[0])

    def label(self, variant: str, sha256: str, bundle: str) -> str:
        return self.find(variant, sha256, bundle).label

    def row(self, row: Named, bench: BenchReport) -> Subject:
        """The subject of a bench's row."""
        return self.find(*origin(row, bench))


def measured(bench: BenchReport) -> list[BenchRow | ScenarioRow]:
    """All rows of a bench."""
    return [*bench.rows, *bench.scenarios]


def origin(row: Named, bench: BenchReport) -> tuple[str, str, str]:
    """Variant, hash and bundle of a row; of several bundles a bench calls its variants ``bundle:variant``."""
    prefix, colon, variant = row.variant.rpartition(":")
    if not colon or len(bench.bundles) < 2:
        return row.variant, row.sha256, bench.bundle
    ends = PurePath(prefix).parts
    bundle = next((path for path in bench.bundles if PurePath(path).parts[-len(ends) :] == ends), prefix)
    return variant, row.sha256, bundle


def short_path(path: str) -> str:
    """The last two parts of a path: a bundle's directory is often called just that."""
    return "/".join(PurePath(path).parts[-2:]) or path


def gather(results: Results) -> Cast:
    """The subjects of all results, in the order in which they are first spoken of, each with a label of its own."""
    seen: dict[tuple[str, str], Subject] = {}
    unhashed = []
    for (variant, sha256, bundle), backend in _mentioned(results):
        if sha256:
            seen.setdefault((variant, sha256), Subject(variant, sha256, bundle, backend))
        else:
            unhashed.append((variant, bundle, backend))
    for variant, bundle, backend in unhashed:
        if not any(s.variant == variant and s.bundle == bundle for s in seen.values()):
            seen[variant, bundle] = Subject(variant, "", bundle, backend)
    cast = Cast(tuple(seen.values()))
    _name(cast)
    _testify(cast, results)
    return cast


def _mentioned(results: Results) -> list[tuple[tuple[str, str, str], str]]:
    """(variant, hash, bundle) of every record, and its backend."""
    mentions = [((r.variant, r.sha256, p.bundle), r.backend) for p in results.parity for r in p.variants]
    mentions += [(origin(r, b), r.backend) for b in results.bench for r in [*measured(b), *b.fresh]]
    mentions += [((e.variant, e.sha256, e.target), e.backend) for e in results.evaluations]
    mentions += [((g.variant, g.sha256, g.bundle), g.backend) for g in results.gpu]
    mentions += [((p.variant, p.sha256, r.bundle), p.backend) for r in results.profiles for p in r.profiles]
    return mentions


def _name(cast: Cast) -> None:
    """The variant's name alone where it is the only one; else with its bundle's, else with the start of its hash."""
    choices: list[dict[int, str]] = [
        {id(s): one_line(text(s)) for s in cast.subjects}
        for text in (
            lambda s: s.variant,
            lambda s: f"{s.variant} ({short_path(s.bundle)})",
            lambda s: f"{s.variant} ({s.sha256[:8] or s.bundle})",
            lambda s: f"{s.variant} ({s.sha256}, {s.bundle})",
        )
    ]
    counts = [Counter(names.values()) for names in choices]
    for subject in cast.subjects:
        own = [
            names[id(subject)] for names, times in zip(choices, counts, strict=True) if times[names[id(subject)]] == 1
        ]
        subject.label = own[0]


Proof = tuple[Verdict, tuple[str, str], tuple[str, ...]]


def _wrong_manifest(parity: ParityReport) -> list[Proof]:
    """What fails of the bundle as a whole fails every variant: who loads one reads its labels from that manifest."""
    return [
        (c.verdict, (c.against, ""), tuple(f"{c.what}: {reason}" for reason in c.reasons))
        for c in parity.checks
        if c.verdict is Verdict.FAIL
    ]


def _loss(r: ParityRecord) -> Loss | None:
    """What a comparison says of the accuracy lost: the paired drop, else the bound of changed classes. Without a limit of
    its own, a loss was judged by the limit of changed classes; a golden pair was judged by neither."""
    limit = None
    if r.limits is not None and r.source is not ImageSource.GOLDEN:
        limit = r.limits.flip_rate if r.limits.accuracy_drop is None else r.limits.accuracy_drop
    if r.drop is not None:
        return Loss(r.drop.drop, r.drop.upper, limit, r.data, r.drop.samples)
    return Loss(None, r.flips.upper, limit, r.data, r.flips.samples) if r.flips is not None else None


def _testify(cast: Cast, results: Results) -> None:
    for parity in results.parity:
        wrong = _wrong_manifest(parity)
        for r in parity.variants:
            _compared(cast, parity, r, wrong)
        for target in parity.fleet:
            for r in target.variants:  # what passes there adds nothing; its section has it
                if r.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
                    there = tuple(f"on {target.target}: {reason}" for reason in r.reasons)
                    proof = (r.verdict, (r.data, target.target), there)
                    cast.find(r.variant, r.sha256, parity.bundle).proofs.append(proof)
    recorded = [(cast.row(row, bench), row.verdict) for bench in results.bench for row in measured(bench)]
    recorded += [(cast.find(p.variant, p.sha256, r.bundle), p.verdict) for r in results.profiles for p in r.profiles]
    for subject, verdict in recorded:
        subject.recorded.append(verdict)
    for e in results.evaluations:
        a = e.accuracy
        accuracy = Accuracy(a.rate, e.data, a.samples, a.lower, a.upper)
        cast.find(e.variant, e.sha256, e.target).accuracies.insert(0, accuracy)


def _compared(cast: Cast, parity: ParityReport, r: ParityRecord, wrong: list[Proof]) -> None:
    """What one comparison says of its variant, and of the reference's own accuracy."""
    subject = cast.find(r.variant, r.sha256, parity.bundle)
    subject.proofs.append((r.verdict, (r.data, r.device), r.reasons))
    subject.proofs += wrong
    subject.numericals += [r.numerical] if r.numerical else []
    subject.bounded += [r.bounds] if r.bounds else []
    if (loss := _loss(r)) is not None:
        subject.losses.append(loss)
    samples = r.flips.samples if r.flips else None
    if r.candidate_accuracy is not None:
        subject.accuracies.append(Accuracy(r.candidate_accuracy, r.data, samples))
    if r.reference_accuracy is not None:
        for other in cast.subjects:
            known = any(a.data == r.data for a in other.accuracies)
            if other.variant == REFERENCE and other.bundle == parity.bundle and not known:
                other.accuracies.append(Accuracy(r.reference_accuracy, r.data, samples))
