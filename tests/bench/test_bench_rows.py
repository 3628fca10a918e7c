"""When a row counts: each fact that voids it is put into what a worker says."""

from __future__ import annotations

import msgspec
import pytest

from vggdeploy.bench.candidates import Entry
from vggdeploy.bench.messages import CheckReply, OpenReply, TurnReply
from vggdeploy.bench.roof import share_of_roof
from vggdeploy.bench.rows import Measured, row_of, sentences
from vggdeploy.bench.stats import compared
from vggdeploy.bundle import Bundle
from vggdeploy.records import BenchRow, CpuRoof
from vggdeploy.types import Device, Precision, SpeedOutcome, Verdict

OPENED = OpenReply(load_ms=5.0, first_ms=1.0, answered=0, peak_rss=10**8, sha256="a" * 64, size=1000, threads=2)
FINE = CheckReply(verdict=Verdict.PASS)
QUIET = TurnReply(nanoseconds=(1_000_000,) * 50, cpu_seconds=0.1, others=0.0, joules=0.5, megahertz=3000.0)


def measured(bundle: Bundle, *turns: TurnReply, batch: int = 1, device: str = "cpu", **how) -> Measured:
    entry = Entry(bundle, bundle.manifest.variant("onnx-fp32"), Device.parse(device), "onnx-fp32")
    return Measured(entry, batch, OPENED, how.pop("checked", FINE), turns=list(turns or [QUIET] * 3), **how)


def row(bundle: Bundle, *turns: TurnReply, asked: int = 90, **how) -> BenchRow:
    one = measured(bundle, *turns, **how)
    return row_of(one, one, asked)


def like(**changes) -> TurnReply:
    return msgspec.structs.replace(QUIET, **changes)


def test_a_quiet_machine_gives_a_valid_row(bundle: Bundle) -> None:
    found = row(bundle, batch=2)
    assert found.valid
    assert found.reasons == found.not_checked == ()
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == (1.0, 1.0, None)
    assert found.images_per_second == pytest.approx(2000)
    assert found.cpu_seconds_per_image == pytest.approx(0.3 / 300)
    assert (found.joules_per_image, found.joules_from) == (pytest.approx(1.5 / 300), "RAPL")
    assert found.comparison == "baseline"
    assert found.sha256 == OPENED.sha256


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([QUIET, QUIET, like(others=0.16)], "busy machine: other processes used 5%"),
        (
            [like(nanoseconds=(ns,) * 50) for ns in (880_000, 1_000_000, 1_120_000)],
            "unstable: the medians of 3 rounds spread by 18%",
        ),
        ([like(nanoseconds=(1_000_000,) * 9)] * 3, "too few calls for p90: 27 of 29"),
        ([QUIET, QUIET, like(megahertz=2600.0)], "frequency: the clock went from 3000 to 2600 MHz"),
        ([QUIET, like(slowed=("power brake",)), QUIET], "throttled: the GPU was slowed down: power brake"),
        ([QUIET, QUIET, like(gpu_others=0.3)], "busy GPU: other processes used 30%"),
    ],
)
def test_each_fact_voids_the_row_with_its_reason(bundle: Bundle, turns: list[TurnReply], reason: str) -> None:
    found = row(bundle, *turns)
    assert not found.valid
    [only] = found.reasons
    assert only.startswith(reason)
    assert found.verdict is Verdict.PASS  # of the variant, which is not to blame


@pytest.mark.parametrize(("rounds", "valid"), [(3, False), (12, False), (18, True), (36, True)])
def test_what_spreads_further_needs_more_rounds(bundle: Bundle, rounds: int, valid: bool) -> None:
    """18% of twelve are too much; of eighteen, the median is known as well as that of twelve which spread by 14.5%."""
    thirds = [like(nanoseconds=(ns,) * 50) for ns in (880_000, 1_000_000, 1_120_000)]
    assert row(bundle, *(thirds * (rounds // 3))).valid is valid


def test_just_inside_the_limits_is_valid(bundle: Bundle) -> None:
    turns = [
        like(others=0.049),
        like(nanoseconds=(1_060_000,) * 50, others=0.049),
        like(megahertz=2701.0, others=0.049),
    ]
    assert row(bundle, *turns).valid


def test_the_percentile_that_is_asked_for_needs_its_calls(bundle: Bundle) -> None:
    assert row(bundle, asked=50).valid
    assert any("too few calls for p99: 150 of 299" in reason for reason in row(bundle, asked=99).reasons)


def test_what_the_machine_says_voids_every_row(bundle: Bundle) -> None:
    found = row(bundle, reasons=("swap: 3 pages went in or out",), not_checked=("throttling: no such file",))
    assert not found.valid
    assert found.reasons == ("swap: 3 pages went in or out",)
    assert found.not_checked == ("throttling: no such file",)


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_wrong_output_fails_the_variant_too(bundle: Bundle, where: str) -> None:
    wrong = ("wrong output: no",)
    how = {"checked": CheckReply(verdict=Verdict.FAIL, reasons=wrong)} if where == "before" else {"wrong": wrong}
    found = row(bundle, **how)
    assert not found.valid
    assert found.verdict is Verdict.FAIL
    assert found.reasons == wrong


def test_what_nobody_could_look_at_is_not_checked_and_null(bundle: Bundle) -> None:
    blind = like(others=None, joules=None, megahertz=None)
    found = row(bundle, blind, blind, blind)
    assert found.valid
    assert [text.split(":")[0] for text in found.not_checked] == ["other processes", "frequency"]
    assert found.joules_per_image is found.others_share is found.mhz_low is found.mhz_high is None
    assert found.joules_from == ""
    half = row(bundle, QUIET, QUIET, like(joules=None))
    assert (half.joules_per_image, half.joules_from) == (None, "")  # a part is no sum


def test_of_a_gpu_the_energy_is_nvmls(bundle: Bundle) -> None:
    assert row(bundle, device="cuda").joules_from == "NVML"


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(1.01, 1.2, "faster"), (0.8, 0.99, "slower"), (0.99, 1.01, "no difference shown"), (1, 1, "no difference shown"),
     (1, 1.5, "no difference shown")],
)  # fmt: skip
def test_an_interval_that_covers_one_shows_nothing(low: float, high: float, shown: str) -> None:
    assert compared(low, high) == shown


def against(base: BenchRow, name: str, shown: str, ratio: float, *, valid: bool = True) -> BenchRow:
    return msgspec.structs.replace(
        base, variant=name, comparison=SpeedOutcome(shown), ratio=ratio, ratio_low=ratio - 0.1, ratio_high=ratio + 0.1,
        valid=valid, reasons=() if valid else ("busy",),
    )  # fmt: skip


def test_the_verdict_stands_before_the_number(bundle: Bundle) -> None:
    base = row(bundle)
    fast, slow = against(base, "fast", "faster", 2.0), against(base, "slow", "slower", 0.5)
    same, void = against(base, "same", "no difference shown", 1.05), against(base, "void", "faster", 9.0, valid=False)
    assert sentences([base, slow, fast]) == ("batch 1: fast is faster, 2.00 × onnx-fp32 (1.90–2.10)",)
    assert sentences([base, slow, same])[0].startswith("batch 1: no difference shown between onnx-fp32 and same, 1.05")
    assert sentences([base, slow])[0].startswith("batch 1: the baseline onnx-fp32 is the fastest, slow is 0.50")
    assert sentences([base, void, fast])[0].endswith("not decided, since invalid: void")
    assert "every row but the baseline" in sentences([base, void])[0]
    assert sentences([against(base, "base", "baseline", 1, valid=False), fast])[0].startswith("batch 1: not decided")
    assert sentences([base])[0] == "batch 1: valid, onnx-fp32 takes 1.000 ms (median)"
    two = msgspec.structs.replace(base, batch=8)
    assert [text.split(":")[0] for text in sentences([base, two])] == ["batch 1", "batch 8"]
    assert sentences([]) == ()


@pytest.mark.parametrize(("reached", "share"), [(0.5, 0.5), (1.0, 1.0), (1.12, None)])
def test_more_than_the_roof_is_no_share_of_it(reached: float, share: float | None) -> None:
    """112% of the roof was reported once: the roof had been measured while the machine was busier."""
    roof = CpuRoof(precision=Precision.FP32, tera_ops=1.0, side=1024, threads=1, library="x")
    assert share_of_roof(reached, Precision.FP32, [roof]) == share
    assert share_of_roof(reached, Precision.INT8, [roof]) is None
