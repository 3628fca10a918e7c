"""What a report concludes: the worst verdict that ran, the fastest proven variant, and never more than was shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from report_samples import BUNDLE, bench, parity, proof, row, write

from vggdeploy.records import FleetTarget
from vggdeploy.report.documents import read_results
from vggdeploy.report.findings import recommend
from vggdeploy.report.subjects import Cast, gather
from vggdeploy.types import Verdict

BASE = row("torch-fp32", 2.0, (1, 1, 1))


def cast_of(tmp_path: Path, *results: Any) -> Cast:
    return gather(read_results(write(tmp_path, *results)))


def take(tmp_path: Path, *rows: Any, proofs: Any = ()) -> tuple[str | None, str]:
    measured = bench(BASE, *rows)
    found = recommend(measured, cast_of(tmp_path, measured, *([parity(*proofs)] if proofs else [])))
    return found.label if found.row else None, found.reason


def test_the_fastest_proven_variant_whose_interval_beats_the_baseline(tmp_path: Path) -> None:
    label, reason = take(tmp_path, row("a", 1.0, (2, 1.9, 2.1)), row("b", 0.5, (4, 3.5, 4.5)))
    assert label == "b"
    assert "4.00 × as fast as torch-fp32 at batch 1 (95% interval 3.50–4.50)" in reason


def test_a_rival_whose_interval_overlaps_is_named(tmp_path: Path) -> None:
    label, reason = take(tmp_path, row("a", 0.51, (3.9, 3.4, 4.4)), row("b", 0.5, (4, 3.5, 4.5)))
    assert label == "b"
    assert "no difference to a is shown" in reason


@pytest.mark.parametrize(
    "unfit",
    [
        {"verdict": Verdict.FAIL, "valid": False},
        {"verdict": Verdict.UNPROVEN},
        {"verdict": Verdict.INCONCLUSIVE},
        {"valid": False, "reasons": ("busy",)},
        {"ratio_low": 0.99},
    ],
    ids=["fail", "unproven", "inconclusive", "invalid", "interval covers 1"],
)
def test_what_is_not_proven_valid_and_shown_to_be_faster_is_not_recommended(
    tmp_path: Path, unfit: dict[str, Any]
) -> None:
    label, reason = take(tmp_path, row("b", 0.5, (4, 3.5, 4.5), **unfit))
    assert label == "torch-fp32"
    assert reason.startswith("the baseline;")
    assert ("no difference shown for b" in reason) == ("ratio_low" in unfit)


def test_a_failed_verify_outweighs_what_the_bench_carried_over(tmp_path: Path) -> None:
    fast = row("b", 0.5, (4, 3.5, 4.5))
    assert take(tmp_path, fast, proofs=(proof(fast, Verdict.FAIL),))[0] == "torch-fp32"


def test_without_a_valid_run_nothing_is_recommended(tmp_path: Path) -> None:
    bad = {"valid": False, "reasons": ("busy machine: x",)}
    measured = bench(msgspec.structs.replace(BASE, **bad), row("b", 0.5, (4, 3.5, 4.5), **bad))
    found = recommend(measured, cast_of(tmp_path, measured))
    assert found.row is None
    assert found.reason == "no run at batch 1 is valid: busy machine: x"


def test_slower_variants_leave_the_baseline(tmp_path: Path) -> None:
    label, reason = take(tmp_path, row("b", 4, (0.5, 0.4, 0.6)))
    assert (label, reason) == ("torch-fp32", "the baseline; every other proven variant is slower at batch 1")


def test_what_fails_on_a_target_of_the_fleet_fails(tmp_path: Path) -> None:
    passed = row("a", 1.0, (2, 1.9, 2.1))
    there = [
        FleetTarget(target=name, title=name, variants=(proof(passed, verdict),))
        for name, verdict in (("nehalem", Verdict.PASS), ("haswell", Verdict.FAIL), ("webgpu", Verdict.UNPROVEN))
    ]
    here = parity(proof(BASE), proof(passed))
    (_, subject) = cast_of(tmp_path, msgspec.structs.replace(here, fleet=tuple(there))).subjects
    assert (subject.verdict, subject.why) == (Verdict.FAIL, "on haswell: a reason to fail")
    (_, subject) = cast_of(tmp_path, msgspec.structs.replace(here, fleet=tuple(there[::2]))).subjects
    assert subject.verdict is Verdict.PASS


def verdicts(cast: Cast) -> dict[str, Verdict]:
    return {s.label: s.verdict for s in cast.subjects}


def test_what_never_ran_is_unproven_and_not_a_pass(tmp_path: Path) -> None:
    cast = cast_of(tmp_path, parity(proof(BASE), proof(row("rtx", 1, (1, 1, 1)), Verdict.UNPROVEN)))
    assert verdicts(cast) == {"torch-fp32": Verdict.PASS, "rtx": Verdict.UNPROVEN}
    assert cast.subjects[1].why == "a reason to unproven"


def test_a_pass_elsewhere_counts_and_a_failure_anywhere_does_too(tmp_path: Path) -> None:
    one = row("a", 1, (1, 1, 1))
    unproven, passed, failed = (parity(proof(one, v)) for v in (Verdict.UNPROVEN, Verdict.PASS, Verdict.FAIL))
    assert verdicts(cast_of(tmp_path, unproven, passed)) == {"a": Verdict.PASS}
    assert verdicts(cast_of(tmp_path, passed, unproven, failed)) == {"a": Verdict.FAIL}


def test_the_same_name_with_other_bytes_is_another_variant(tmp_path: Path) -> None:
    old, new = (row("a", 1, (1, 1, 1), sha256=c * 64) for c in "0f")
    assert set(verdicts(cast_of(tmp_path, bench(old), bench(new)))) == {"a (00000000)", "a (ffffffff)"}
    apart = msgspec.structs.replace(bench(new), bundle="artifacts/other/bundle")
    assert set(verdicts(cast_of(tmp_path, bench(old), apart))) == {"a (demo/bundle)", "a (other/bundle)"}


def test_a_bench_of_several_bundles_meets_their_proofs(tmp_path: Path) -> None:
    bare = row("onnx-fp32", 0.5, (1, 1, 1))
    named = msgspec.structs.replace(bare, variant="bundle:onnx-fp32")
    other = row("thin:onnx-fp32", 0.2, (2.5, 2, 3))
    both = bench(named, other, bundles=(BUNDLE, "artifacts/thin"))
    cast = cast_of(tmp_path, both, parity(proof(bare, Verdict.INCONCLUSIVE)))
    assert verdicts(cast) == {
        "onnx-fp32 (demo/bundle)": Verdict.INCONCLUSIVE,
        "onnx-fp32 (artifacts/thin)": Verdict.PASS,
    }
