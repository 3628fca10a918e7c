"""What the package decides: verdicts, choices, colours and exit codes of fixed cases, with no words in them.

Run as ``python -m rewording.scenarios BUNDLE DIRECTORY each|import``: each case is run again with all of its messages
reworded, and with each of them in turn; or what is said at import is reworded, all of it. Prints JSON: what was decided,
what was said, and which decisions moved.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewording.messages import Speaker, install, rewritten

Case = Callable[[], Any]
SLOW = ("prove", "verify", "predict")  # a message that an earlier case has said has no turn of its own in these
# A module that decides by words, to show that it is noticed.
CANARY = """
def verdict():
    reason = f"wrong output: {1} of {2}"
    return "fail" if reason.startswith("wrong output") else "pass"
"""


class Drifting:
    """An open session that never answers the same again."""

    def __init__(self, session: Any) -> None:
        self.session, self.calls = session, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, feeds: Any) -> Any:
        self.calls += 1
        return {name: found + self.calls for name, found in self.session.run(feeds).items()}


@dataclass
class Bundles:
    """Three bundles: a good one; one whose variants are on record as failed; one whose golden outputs are others."""

    good: Path
    failed: Path
    wrong: Path

    @classmethod
    def make(cls, good: Path, directory: Path) -> Bundles:
        import msgspec

        from vggdeploy.bundle import Bundle, update_bundle
        from vggdeploy.records import ParityRecord
        from vggdeploy.types import Verdict

        made = cls(good, directory / "failed", directory / "wrong")
        for path in (made.failed, made.wrong):
            shutil.copytree(good, path)
        bundle = Bundle.open(made.failed)
        with update_bundle(bundle) as draft:
            draft.manifest = bundle.manifest.with_variants(
                *(
                    msgspec.structs.replace(
                        v, parity=ParityRecord(variant=v.name, backend="x", device="cpu", verdict=Verdict.FAIL)
                    )
                    for v in bundle.manifest.candidates()
                )
            )
        bundle = Bundle.open(made.wrong)
        with update_bundle(bundle) as draft:
            draft.save_arrays("golden/outputs", {"logits": bundle.golden()[1]["logits"] + 5})
        return made


def cases(bundles: Bundles, directory: Path) -> dict[str, Case]:
    """Each by its name; every one answers with what was decided."""
    return {
        "canary": _canary(),
        **_bench_rows(bundles),
        **_selection(bundles),
        **_proofs(bundles),
        **_loads(),
        **_reports(directory / "report"),
        **_commands(bundles, directory),
    }


def _canary() -> Case:
    space: dict[str, Any] = {}
    exec(rewritten(CANARY, "canary", "canary.py"), space)  # noqa: S102  # the text above
    verdict: Case = space["verdict"]
    return verdict


def _bench_rows(bundles: Bundles) -> dict[str, Case]:
    import msgspec
    import numpy as np
    from report_samples import bench

    from vggdeploy.bench.candidates import Candidate, Entry, judge_golden
    from vggdeploy.bench.interference import Counters
    from vggdeploy.bench.messages import CheckReply, OpenReply, TurnReply
    from vggdeploy.bench.rows import Measured, row_of, sentences
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli.bench import _exit_code
    from vggdeploy.runtime import open_session
    from vggdeploy.types import Device, Verdict

    opened = OpenReply(load_ms=5, first_ms=1, answered=0, peak_rss=1, sha256="a" * 64, size=9, threads=2)
    quiet = TurnReply(nanoseconds=(1_000_000,) * 50, cpu_seconds=0.1, others=0.0, joules=0.5, megahertz=3000.0)

    def decided(path: Path, *turns: TurnReply, drifts: bool = False, swapped: int = 0) -> Any:
        bundle = Bundle.open(path)
        entry = Entry(bundle, bundle.manifest.variant("onnx-fp32"), Device(), "onnx-fp32")
        with open_session(bundle, entry.variant, threads=1) as session:
            verdict, reasons = judge_golden(session, bundle, entry.variant, entry.device, (1,))
            [images] = bundle.golden()[0].values()
            candidate = Candidate(Drifting(session) if drifts else session, np.asarray(images), 1)  # type: ignore[arg-type]
            candidate.call()
            wrong = candidate.repeat()
        doubts, unchecked = Counters(swapped, None).doubts(Counters(0, None))
        checked = CheckReply(verdict=verdict, reasons=reasons)
        one = Measured(entry, 1, opened, checked, turns=list(turns), wrong=wrong, reasons=doubts, not_checked=unchecked)
        base = Measured(entry, 1, opened, CheckReply(verdict=Verdict.PASS), turns=[quiet] * 3)
        row = row_of(one, base, 90)
        report = bench(row_of(base, base, 90), row)
        sentences(report.rows)
        codes = [_exit_code(report, require_valid=strict) for strict in (False, True)]
        return [row.verdict, row.valid, row.comparison, *codes]

    busy = msgspec.structs.replace(quiet, others=0.5, slowed=("power brake",), gpu_others=0.5)
    return {
        "bench: quiet": lambda: decided(bundles.good, quiet, quiet, quiet),
        "bench: busy": lambda: decided(bundles.good, quiet, busy, quiet, swapped=3),
        "bench: another answer after it": lambda: decided(bundles.good, quiet, quiet, quiet, drifts=True),
        "bench: golden pair missed": lambda: decided(bundles.wrong, quiet, quiet, quiet),
    }


def _selection(bundles: Bundles) -> dict[str, Case]:
    from vggdeploy.bundle import Bundle
    from vggdeploy.engine.selection import choices, select
    from vggdeploy.errors import VggdeployError
    from vggdeploy.types import Device

    def chosen(path: Path, **asked: Any) -> Any:
        bundle = Bundle.open(path)
        try:
            return [v.name for v in select(bundle, **asked)]
        except VggdeployError as error:
            return [type(error).__name__, error.exit_code]

    def standing(path: Path) -> Any:
        return [[c.variant.name, c.standing.name, c.rank[1:]] for c in choices(Bundle.open(path))]

    gpu = Device("cuda")
    return {
        "select: all good": lambda: [chosen(bundles.good), standing(bundles.good)],
        "select: all failed": lambda: [chosen(bundles.failed, backend="onnxruntime"), standing(bundles.failed)],
        "select: one that failed": lambda: chosen(bundles.failed, variant="onnx-fp32"),
        "select: no such GPU": lambda: chosen(bundles.failed, backend="onnxruntime", device=gpu),
        "select: no such variant": lambda: chosen(bundles.good, backend="openvino"),
        "select: of another backend": lambda: chosen(bundles.good, variant="onnx-fp32", backend="torch"),
    }


def _proofs(bundles: Bundles) -> dict[str, Case]:
    import msgspec

    from vggdeploy.bundle import Bundle
    from vggdeploy.parity import Reference
    from vggdeploy.parity.reference import golden_reference
    from vggdeploy.records import ParityReport
    from vggdeploy.types import Device, Precision
    from vggdeploy.verify.prove import Limits, prove
    from vggdeploy.verify.samples import samples_or_synthetic
    from vggdeploy.verify.verify import exit_code

    def proven(
        path: Path, limits: Limits | None = None, *, claims: Precision = Precision.FP32, gpu: bool = False
    ) -> Any:
        bundle = Bundle.open(path)
        golden = golden_reference(bundle)
        nameless: Any = msgspec.structs.replace(bundle.manifest, dataset="")
        made, _ = samples_or_synthetic(nameless, 8, None)
        count = len(golden.images)
        images, outputs = golden.images[:], golden.outputs
        real = Reference(images, outputs, f"digits test ({count} images)")
        synthetic = Reference(images, outputs, made.data, source=made.source)
        variant = msgspec.structs.replace(bundle.manifest.variant("onnx-fp32"), precision=claims)
        device = Device("cuda") if gpu else Device()
        records = prove(bundle, variant, [golden, real, synthetic], 1, lambda share, phase: None, limits, device)
        report = ParityReport(bundle="b", created="", variants=tuple(records))
        return [[str(r.verdict) for r in records], exit_code(report)]

    return {
        "prove: too few real images": lambda: proven(bundles.good),
        "prove: good enough": lambda: proven(bundles.good, Limits(flip_rate=0.2)),
        "prove: an accuracy drop without labels": lambda: proven(
            bundles.good, Limits(flip_rate=0.2, accuracy_drop=0.1)
        ),
        "prove: far away": lambda: proven(bundles.wrong),
        "prove: another precision": lambda: proven(bundles.good, claims=Precision.FP16),
        "prove: nothing to run it": lambda: proven(bundles.good, gpu=True),
    }


def _loads() -> dict[str, Case]:
    from vggdeploy.bench.loadgen.rates import Search, no_rate
    from vggdeploy.bench.loadgen.scenarios import Issued, Load, scenario_row
    from vggdeploy.records import LoadAnswers
    from vggdeploy.types import Verdict

    load = Load("server", seconds=1.0, batch=8, target_qps=100.0, latency_bound_ms=10.0)

    def issued(valid: bool, **changed: Any) -> Issued:
        about: dict[str, Any] = {
            "words": "",
            "queries": 400,
            "samples_per_second": 100.0,
            "p50_ms": 1.0,
            "p90_ms": 2.0,
            "p99_ms": 3.0,
            "estimate_ms": None,
            "needed": None,
            "bound_met": True,
            "piled_up": False,
        }
        return Issued(valid=valid, **{**about, **changed})

    def row(found: Issued, verdict: Verdict = Verdict.PASS, reasons: tuple[str, ...] = ()) -> Any:
        answers = LoadAnswers(images=9, misplaced=0, changed=0, outputs=(), verdict=verdict, reasons=reasons)
        about = {"variant": "v", "backend": "b", "device": "cpu", "verdict": Verdict.PASS}
        made = scenario_row(load, found, None, answers, **about)
        return [made.verdict, made.valid]

    def searched(limit: float) -> Any:
        def issue(asked: Load) -> Issued:
            rate = asked.target_qps or 0
            return issued(rate < limit, bound_met=rate < limit, piled_up=rate > 2 * limit)

        found, _, _ = Search(issue, load, 100.0, clock=lambda: 0.0).run()
        no_rate(found)
        return [found.qps, [(t.qps, t.valid) for t in found.tries]]

    return {
        "load: valid": lambda: row(issued(True)),
        "load: piled up": lambda: row(issued(False, piled_up=True)),
        "load: above the bound": lambda: row(issued(False, bound_met=False)),
        "load: too few queries": lambda: row(issued(False, words="Min queries not met", needed=900)),
        "load: wrong answers": lambda: row(issued(True), Verdict.FAIL, ("2 of 9 answers belong to other images",)),
        "load: a rate": lambda: searched(300.0),
        "load: no rate": lambda: searched(0.001),
    }


def _reports(directory: Path) -> dict[str, Case]:
    import msgspec
    from report_samples import bench, parity, proof, row, write

    from vggdeploy.cli.tables import bench_table, parity_table
    from vggdeploy.records import BenchReport, Check, ParityReport
    from vggdeploy.report.documents import read_results
    from vggdeploy.report.findings import recommend
    from vggdeploy.report.grids import summary
    from vggdeploy.report.subjects import gather
    from vggdeploy.types import Verdict

    base = row("torch-fp32", 2.0, (1, 1, 1))
    fast, close = row("onnx-fp32", 0.5, (4, 3.9, 4.1)), row("onnx-fp16", 0.51, (3.9, 3.8, 4.0))
    equal = row("onnx-int8", 2.0, (1, 0.9, 1.1))
    busy = msgspec.structs.replace(fast, valid=False, reasons=("busy machine: others",))

    def told(measured: BenchReport, proven: ParityReport) -> Any:
        results = read_results(write(directory, measured, proven))
        cast = gather(results)
        found = recommend(measured, cast)
        lights = [[c.light if hasattr(c, "light") else "" for c in line] for line in summary(results, cast).rows]
        bench_table(measured)
        parity_table(proven)
        return [found.label, [str(s.verdict) for s in cast.subjects], [r.label for r in found.rivals], lights]

    bad = Check(what="labels", against="checkpoint", verdict=Verdict.FAIL, reasons=("class 3 is 'x' there",))
    fine = [proof(base), proof(fast), proof(close)]
    return {
        "report: a faster one": lambda: told(bench(base, fast, close), parity(*fine)),
        "report: no difference": lambda: told(bench(base, equal), parity(proof(base), proof(equal))),
        "report: an invalid run": lambda: told(bench(base, busy), parity(proof(base), proof(busy))),
        "report: nothing valid": lambda: told(bench(busy), parity(proof(busy))),
        "report: not proven": lambda: told(bench(base, fast), parity(proof(base), proof(fast, Verdict.UNPROVEN))),
        "report: undecided": lambda: told(bench(base, fast), parity(proof(base), proof(fast, Verdict.INCONCLUSIVE))),
        "report: failed": lambda: told(bench(base, fast), parity(proof(base), proof(fast, Verdict.FAIL))),
        "report: a wrong manifest": lambda: told(
            bench(base, fast), msgspec.structs.replace(parity(*fine[:2]), checks=(bad,))
        ),
    }


def _commands(bundles: Bundles, directory: Path) -> dict[str, Case]:
    import msgspec
    from report_samples import bench, row, write

    from vggdeploy.cli.app import run
    from vggdeploy.types import Verdict

    old = row("onnx-fp32", 1.0, (1, 1, 1))
    changed: list[dict[str, Any]] = [
        {},
        {"p50_ms": 2.0, "round_medians_ms": (2.0, 2.01, 1.99)},
        {"valid": False, "reasons": ("busy machine: others",)},
        {"verdict": Verdict.FAIL},
        {"round_medians_ms": ()},
    ]
    files = [str(f) for f in write(directory, *(bench(msgspec.structs.replace(old, **c)) for c in changed))]
    first, slower, invalid, wrong, short = files
    limit = ["--fail-if-slower", "5%"]
    text = directory / "no-image.png"
    text.write_text("no image")
    good, failed, other = str(bundles.good), str(bundles.failed), str(bundles.wrong)
    golden = ["--data", "golden", "--backend", "onnxruntime"]
    lines = {
        "compare: the same": ["compare", first, first, *limit],
        "compare: slower": ["compare", first, slower, *limit],
        "compare: slower, without a limit": ["compare", first, slower],
        "compare: invalid": ["compare", first, invalid, *limit],
        "compare: a wrong output": ["compare", first, wrong],
        "compare: no rounds": ["compare", first, short, *limit],
        "compare: one file": ["compare", first],
        "verify: pass": ["verify", good, *golden],
        "verify: fail": ["verify", other, *golden],
        "verify: no GPU": ["verify", good, *golden, "--device", "cuda"],
        "verify: no such backend": ["verify", good, "--backend", "openvino"],
        "verify: no bundle": ["verify", str(directory / "none")],
        "verify: no such option": ["verify", good, "--half"],
        "predict: failed parity": ["predict", failed, str(text), "--variant", "onnx-fp32"],
        "predict: no image": ["predict", good, str(text), "--backend", "onnxruntime"],
        "predict: no such file": ["predict", good, str(directory / "none.png"), "--backend", "onnxruntime"],
        "inspect": ["inspect", good],
    }
    return {name: lambda line=line: run(line) for name, line in lines.items()}  # type: ignore[misc]


def decision(case: Case) -> str:
    """What a case decides, as text; an error that ends it is a decision, too."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return json.dumps(case())
        except Exception as error:
            return f"{type(error).__name__}"


def main(bundle: Path, directory: Path, way: str) -> None:
    speaker = Speaker(at_import=way == "import")
    install(speaker)
    (directory / "report").mkdir()
    named = cases(Bundles.make(bundle, directory), directory)
    decided: dict[str, str] = {}
    places: dict[str, str] = {}
    moved: list[dict[str, Any]] = []
    for name, case in named.items():
        decision(case)  # imports what it needs
        speaker.said = {}
        decided[name] = decision(case)
        said = dict(speaker.said)
        turned = [place for place in said if place not in places or not name.startswith(SLOW)]
        places |= said
        for chosen in [[*said], *([place] for place in turned)] if way == "each" else ():
            speaker.chosen = frozenset(chosen)
            after = decision(case)
            speaker.chosen = frozenset()
            if after != decided[name]:
                texts = [said[place] for place in chosen]
                moved.append({"case": name, "texts": texts, "before": decided[name], "after": after})
    print(json.dumps({"decided": decided, "said": places, "moved": moved}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
