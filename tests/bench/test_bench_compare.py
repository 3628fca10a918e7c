"""Two benches beside each other: slower is shown or not shown, and what cannot be judged never passes in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy.bench.compare import compare_bundles, compare_files
from vggdeploy.bench.stats import unpaired_ratio_interval
from vggdeploy.cli.app import run
from vggdeploy.cli.compare import parse_limit
from vggdeploy.errors import UsageError
from vggdeploy.records import BenchReport, BenchRow, Conditions, Machine, from_json, to_json
from vggdeploy.types import Verdict

V1 = Path(__file__).parents[1] / "fixtures" / "results-v1"
MACHINE = Machine(cpu="c", cores=2, memory_gib=8.0, features=(), system="Linux", python="3.11")


def row(ms: float, spread: float = 0.005, **changed: Any) -> BenchRow:
    """A variant whose seven rounds lie within ``spread`` of ``ms``."""
    rounds = tuple(float(ms * (1 + spread * step)) for step in np.linspace(-1, 1, 7))
    found = BenchRow(
        variant="onnx-fp32", backend="onnxruntime", device="cpu", batch=1, rounds=7, calls=70, p50_ms=ms, p90_ms=ms,
        p99_ms=None, images_per_second=1000 / ms, load_ms=1, ratio=1, ratio_low=1, ratio_high=1, verdict=Verdict.PASS,
        valid=True, round_medians_ms=rounds, sha256="a" * 64,
    )  # fmt: skip
    return msgspec.structs.replace(found, **changed)


def file(path: Path, *rows: BenchRow, **changed: Any) -> Path:
    report = BenchReport(
        bundle="b", created="now", machine=MACHINE, threads=2, data="digits", baseline="onnx-fp32", rows=rows
    )
    path.write_bytes(to_json(msgspec.structs.replace(report, **changed)))
    return path


def compared(tmp_path: Path, old: BenchRow, new: BenchRow, limit: float | None = 0.1) -> Any:
    report = compare_files([file(tmp_path / "old.json", old)], [file(tmp_path / "new.json", new)], limit=limit)
    (only,) = report.rows
    return only, report


@pytest.mark.parametrize(
    ("new", "outcome", "passed"),
    [
        (row(1.0), "no difference shown", True),
        (row(1.001, 0.02), "no difference shown", True),
        (row(0.5), "faster", True),
        (row(1.2), "slower", False),
    ],
)
def test_the_whole_interval_decides(tmp_path: Path, new: BenchRow, outcome: str, passed: bool) -> None:
    only, report = compared(tmp_path, row(1.0), new)
    assert (only.outcome, report.passed, only.too_slow) == (outcome, passed, not passed)
    assert only.ratio_low <= only.ratio <= only.ratio_high


@pytest.mark.parametrize("new", [row(1.0, 0.3), row(1.06), row(1.1), row(1.06, 0.1)])
def test_an_interval_that_holds_the_limit_does_not_pass_and_says_how_much_would_do(
    tmp_path: Path, new: BenchRow, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slowdown of 8% used to pass a limit of 5% in two of three runs."""
    only, report = compared(tmp_path, row(1.0, 0.1), new, limit=0.05)
    assert (report.passed, only.cannot_rule_out, only.too_slow) == (False, True, False)
    assert only.more is not None and only.more > 0.5
    old, other = str(tmp_path / "old.json"), str(tmp_path / "new.json")
    assert run(["compare", old, other, "--fail-if-slower", "5%"]) == 4
    said = capsys.readouterr().err
    assert "could not be judged: a slowdown of 0.05 lies within its interval; this much measuring shows one of" in said
    assert "times as much" in said


def test_several_runs_a_side_show_how_much_runs_differ(tmp_path: Path) -> None:
    """Two sets of runs of the same build that differ by 3% among themselves, and a build that is 10% slower."""
    levels = (0.97, 1.0, 1.03, 1.01)
    old = [file(tmp_path / f"old{n}", row(ms)) for n, ms in enumerate(levels)]
    same = [file(tmp_path / f"same{n}", row(ms)) for n, ms in enumerate(reversed(levels))]
    slower = [file(tmp_path / f"slower{n}", row(1.1 * ms)) for n, ms in enumerate(levels)]
    assert compare_files(old, same).rows[0].outcome == "no difference shown"
    report = compare_files(old, slower, limit=0.02)
    assert report.rows[0].outcome == "slower" and report.rows[0].too_slow
    assert report.warnings == ()  # nothing is assumed
    names = [",".join(map(str, side)) for side in (old, slower)]
    assert (report.old, report.new) == (names[0], names[1])
    assert run(["compare", *names, "--fail-if-slower", "2%"]) == 4


@pytest.mark.parametrize("ms", [0.0, -1.0, 5e-324, 1e308])
def test_rounds_that_are_no_times_are_not_judged(tmp_path: Path, ms: float) -> None:
    only, report = compared(tmp_path, row(1.0), row(1.0, round_medians_ms=(ms,) * 7))
    assert (only.outcome, report.passed) == ("not judged", False)
    assert "rounds with a time" in only.reasons[0]


def test_the_same_run_twice_does_not_show_that_runs_are_equal(tmp_path: Path) -> None:
    """Three times one file had the interval 1.00 to 1.00."""
    one, copy = file(tmp_path / "one", row(1.0)), file(tmp_path / "copy", row(1.0))
    with pytest.raises(UsageError, match="is the same run as"):
        compare_files([one, one, copy], [one])
    compare_files([one], [copy])


@pytest.mark.parametrize("processes", [10**15, -3, 0, 8])
def test_a_file_that_lies_about_its_processes_is_compared_by_its_rounds(tmp_path: Path, processes: int) -> None:
    """A mutated file asked for 10¹⁵ parts: `compare` hung."""
    only, _ = compared(tmp_path, row(1.0), row(1.2, processes=processes))
    assert only.outcome == "slower"


def test_a_variant_that_one_of_the_runs_lacks_is_not_judged(tmp_path: Path) -> None:
    whole, half = file(tmp_path / "a", row(1.0), row(1.0, variant="b")), file(tmp_path / "b", row(1.0))
    report = compare_files([whole], [whole, half], limit=0.5)
    assert (report.rows[1].outcome, report.passed) == ("not judged", False)


def together(*rows: BenchRow) -> BenchReport:
    return BenchReport(
        bundle="old", bundles=("old", "new"), created="now", machine=MACHINE, threads=2, data="digits",
        baseline=rows[0].variant, rows=rows,
    )  # fmt: skip


def side(name: str, ms: float, **changed: Any) -> BenchRow:
    return row(ms, variant=f"{name}:onnx-fp32", processes=3, **changed)


def test_two_bundles_of_one_run_are_held_against_each_other_pair_by_pair() -> None:
    report = compare_bundles(together(side("old", 1.0), side("new", 1.03)), ("old", "new"), limit=0.05)
    (only,) = report.rows
    assert (only.variant, only.outcome, report.passed, report.warnings) == ("onnx-fp32", "slower", True, ())
    slow = compare_bundles(together(side("old", 1.0), side("new", 1.06)), ("old", "new"), limit=0.05)
    assert (slow.passed, slow.rows[0].too_slow) == (False, True)
    noisy = tuple(float(x) for x in np.linspace(0.8, 1.3, 7))
    unclear = together(side("old", 1.0), side("new", 1.0, round_medians_ms=noisy))
    assert compare_bundles(unclear, ("old", "new"), limit=0.05).rows[0].cannot_rule_out
    busy = together(side("old", 1.0), side("new", 1.0, valid=False, reasons=("busy machine",)))
    assert compare_bundles(busy, ("old", "new"), limit=0.05).rows[0].reasons == ("new: busy machine",)
    gone = together(side("old", 1.0), row(1.0, variant="old:b"), side("new", 1.0))
    assert not compare_bundles(gone, ("old", "new"), limit=0.05).passed
    with pytest.raises(UsageError, match="no variant in common"):
        compare_bundles(together(side("old", 1.0), row(1.0, variant="new:b")), ("old", "new"), limit=0.05)


@pytest.mark.parametrize("side", ["old", "new"])
@pytest.mark.parametrize(
    ("unfit", "told"),
    [
        ({"valid": False, "reasons": ("busy machine",)}, "busy machine"),
        ({"round_medians_ms": ()}, "fewer than 3 rounds with a time"),
    ],
)
def test_what_cannot_be_judged_does_not_pass(tmp_path: Path, side: str, unfit: dict[str, Any], told: str) -> None:
    sides = {"old": row(1.0), "new": row(1.0)} | {side: row(1.0, **unfit)}
    only, report = compared(tmp_path, **sides)
    assert (only.outcome, report.passed) == ("not judged", False)
    assert told in " ".join(only.reasons)
    assert compared(tmp_path, **sides, limit=None)[1].passed  # without a limit there is nothing to miss


def test_a_variant_that_is_gone_does_not_pass_and_a_new_one_does(tmp_path: Path) -> None:
    one, two = row(1.0), row(1.0, variant="onnx-fp16")
    both, single = file(tmp_path / "both.json", one, two), file(tmp_path / "one.json", one)
    assert not compare_files([both], [single], limit=0.1).passed
    grown = compare_files([single], [both], limit=0.1)
    assert grown.passed
    assert grown.rows[1].reasons == ("only the new bench has it",)


@pytest.mark.parametrize(
    "other", [{"threads": 4}, {"machine": msgspec.structs.replace(MACHINE, cpu="d")}], ids=["threads", "machine"]
)
def test_another_machine_is_named_and_refused_where_a_limit_is_to_be_held(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    old, new = file(tmp_path / "old.json", row(1.0)), file(tmp_path / "new.json", row(1.0), **other)
    assert "other" in compare_files([old], [new]).warnings[0]
    with pytest.raises(UsageError, match="cannot be held against a limit"):
        compare_files([old], [new], limit=0.1)


@pytest.mark.parametrize("other", [{"pinned": True}, {"governor": "powersave"}])
def test_another_pinning_or_governor_is_another_machine(tmp_path: Path, other: dict[str, Any]) -> None:
    held = {"affinity": (0, 1), "governor": "performance", "pinned": False}
    old = file(tmp_path / "old.json", row(1.0), conditions=Conditions(**held))
    new = file(tmp_path / "new.json", row(1.0), conditions=Conditions(**(held | other)))
    assert (
        f"another {'pinning' if 'pinned' in other else 'frequency governor'}" in compare_files([old], [new]).warnings[0]
    )
    with pytest.raises(UsageError, match="cannot be held against a limit"):
        compare_files([old], [new], limit=0.1)


def test_other_versions_and_other_bytes_are_named_and_compared(tmp_path: Path) -> None:
    old = file(tmp_path / "old.json", row(1.0), tools={"onnxruntime": "1.30"})
    new = file(tmp_path / "new.json", row(1.0, sha256="b" * 64), tools={"onnxruntime": "1.31"})
    report = compare_files([old], [new], limit=0.1)
    assert report.passed
    assert report.warnings[0] == "another onnxruntime: 1.30, then 1.31"
    assert "not interleaved" in report.warnings[-1]
    assert report.rows[0].same_bytes is False


def test_the_command_exits_with_4_and_the_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = str(file(tmp_path / "old.json", row(1.0))), str(file(tmp_path / "new.json", row(1.2)))
    assert run(["compare", old, new]) == 0
    assert run(["compare", old, new, "--fail-if-slower", "40%"]) == 0
    capsys.readouterr()
    assert run(["compare", old, new, "--fail-if-slower", "5%"]) == 4
    shown = capsys.readouterr()
    assert "too slow" in shown.out
    assert "onnx-fp32 at 1 is slower than allowed: 0.833 (0.788–0.881) × as fast as before" in shown.err


def test_json_is_one_document_with_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = str(file(tmp_path / "old.json", row(1.0))), str(file(tmp_path / "new.json", row(1.2)))
    assert run(["compare", old, new, "--fail-if-slower", "5", "--json"]) == 4
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], found["limit"], found["rows"][0]["too_slow"]) == (False, 0.05, True)
    assert found["command"].endswith("--fail-if-slower 5 --json")


def test_a_wrong_output_is_exit_3(tmp_path: Path) -> None:
    wrong = row(0.5, verdict=Verdict.FAIL, valid=False, reasons=("wrong output",))
    assert run(["compare", *map(str, (file(tmp_path / "o", row(1.0)), file(tmp_path / "n", wrong)))]) == 3


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--roof"], "--roof belongs to vggdeploy bench"),
        (["--fail-if-slower", "fast"], "--fail-if-slower is fast"),
        (["--fail-if-slower=-1"], "--fail-if-slower is -1"),
        (["third.json"], "third.json"),
    ],
)
def test_what_means_nothing_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], told: str
) -> None:
    one = str(file(tmp_path / "one.json", row(1.0)))
    assert run(["compare", one, one, *extra]) == 2
    assert told in capsys.readouterr().err


def test_other_documents_and_other_variants_are_refused(tmp_path: Path) -> None:
    one = file(tmp_path / "one.json", row(1.0))
    other = file(tmp_path / "other.json", row(1.0, variant="x"))
    assert run(["compare", str(one), str(V1 / "parity.json")]) == 1
    assert run(["compare", str(one), str(tmp_path / "none.json")]) == 1
    assert run(["compare", str(one), str(other)]) == 2


def test_benches_of_schema_version_1_are_compared_without_an_interval(tmp_path: Path) -> None:
    report = compare_files([V1 / "bench.json"], [V1 / "bench.json"])
    assert {r.outcome for r in report.rows} == {"not judged"}
    assert all(r.ratio == 1 and r.ratio_low is None for r in report.rows)
    scenarios = compare_files([V1 / "bench-scenarios.json"], [V1 / "bench-scenarios.json"])
    assert "without rounds" in scenarios.rows[0].reasons[-1]
    assert from_json(to_json(report), type(report), what="it") == report


@pytest.mark.parametrize(("text", "limit"), [("5%", 0.05), ("5", 0.05), (" 2.5 %", 0.025), ("0", 0)])
def test_a_limit_is_a_percentage(text: str, limit: float) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize("text", ["", "%", "nan", "inf", "-1", "5%%", "five"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_limit(text)


TIMES = st.lists(st.floats(0.01, 1e4), min_size=3, max_size=20)


@given(TIMES, TIMES)
def test_the_interval_turns_around_with_its_sides(old: list[float], new: list[float]) -> None:
    ratio, low, high = unpaired_ratio_interval([old], [new])
    assert low <= ratio <= high
    assert unpaired_ratio_interval([new], [old]) == pytest.approx((1 / ratio, 1 / high, 1 / low))
