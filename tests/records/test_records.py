"""Records go to JSON and come back the same, or are refused in one line."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy.errors import BundleError, UsageError
from vggdeploy.records import (
    CEILINGS,
    BenchReport,
    BenchRow,
    FlipCount,
    Machine,
    OutputParity,
    ParityRecord,
    ParityReport,
    check_numbers,
    from_json,
    to_json,
)
from vggdeploy.types import ImageSource, Precision, Verdict

FINITE = st.floats(allow_nan=False, allow_infinity=False)
PARITY = st.builds(
    ParityRecord,
    variant=st.text(),
    backend=st.text(),
    device=st.text(),
    verdict=st.sampled_from(Verdict),
    reasons=st.lists(st.text(), max_size=2).map(tuple),
    data=st.text(),
    outputs=st.lists(
        st.builds(
            OutputParity, output=st.text(), samples=st.integers(0, 2**53), max_abs=FINITE, mean_abs=FINITE,
            relative_l2=FINITE, cosine_min=FINITE, cosine_mean=FINITE,
        ),
        max_size=2,
    ).map(tuple),
    flips=st.none() | st.builds(FlipCount, flips=st.integers(), samples=st.integers(), lower=FINITE, upper=FINITE),
    reference_accuracy=st.none() | FINITE,
    candidate_accuracy=st.none() | FINITE,
    tools=st.dictionaries(st.text(), st.text(), max_size=2),
)  # fmt: skip


def record(verdict: Verdict) -> ParityRecord:
    return ParityRecord(variant="v", backend="b", device="cpu", verdict=verdict)


REAL_FLIPS = {"flips": FlipCount(flips=0, samples=40, lower=0, upper=0.1)}


@pytest.mark.parametrize(
    ("verdict", "more", "apart"),
    [
        (Verdict.PASS, REAL_FLIPS, (Verdict.PASS, Verdict.PASS)),
        (Verdict.PASS, {}, (Verdict.PASS, None)),
        (Verdict.PASS, {**REAL_FLIPS, "source": ImageSource.GOLDEN}, (Verdict.PASS, None)),
        (Verdict.INCONCLUSIVE, REAL_FLIPS, (Verdict.PASS, Verdict.INCONCLUSIVE)),
        (Verdict.UNPROVEN, {}, (Verdict.UNPROVEN, None)),
        (Verdict.FAIL, REAL_FLIPS, (None, None)),
    ],
    ids=["pass", "no classes", "golden", "inconclusive", "unproven", "fail"],
)
def test_a_record_of_one_verdict_is_read_as_two_as_far_as_it_tells(
    verdict: Verdict, more: dict[str, Any], apart: tuple[Verdict | None, Verdict | None]
) -> None:
    written = msgspec.to_builtins(ParityRecord(variant="v", backend="b", device="cpu", verdict=verdict, **more))
    old = {key: value for key, value in written.items() if key not in ("numerical", "bounds")}
    found = from_json(msgspec.json.encode(old), ParityRecord, what="it")
    assert (found.verdict, found.numerical, found.bounds) == (verdict, *apart)


@pytest.mark.parametrize(
    ("whole", "numerical", "bounds"),
    [
        ("pass", "fail", None),
        ("pass", "pass", "inconclusive"),
        ("inconclusive", "fail", "inconclusive"),
        ("fail", "pass", "pass"),
        ("pass", None, "pass"),
    ],
)
def test_a_verdict_that_its_two_do_not_make_is_refused(whole: str, numerical: str | None, bounds: str | None) -> None:
    """The attack: a failure that was written over in one of three places."""
    forged = {
        "variant": "v",
        "backend": "b",
        "device": "cpu",
        "verdict": whole,
        "numerical": numerical,
        "bounds": bounds,
    }
    with pytest.raises(BundleError, match="numerical parity"):
        from_json(msgspec.json.encode(forged), ParityRecord, what="it")


def test_a_failure_is_one_of_numerical_parity_and_keeps_its_bound() -> None:
    found = ParityRecord(variant="v", backend="b", device="cpu", verdict=Verdict.INCONCLUSIVE, **REAL_FLIPS).failed(
        ("x",)
    )
    assert (found.verdict, found.numerical, found.bounds) == (Verdict.FAIL, Verdict.FAIL, Verdict.INCONCLUSIVE)
    assert found.reasons == ("x",)


@given(PARITY)
def test_a_parity_record_comes_back_the_same(parity: ParityRecord) -> None:
    assert from_json(to_json(parity), ParityRecord, what="it") == parity


def test_a_bench_report_comes_back_the_same() -> None:
    machine = Machine(cpu="c", cores=2, memory_gib=8.0, features=("avx2",), system="Linux", python="3.11")
    row = BenchRow(
        variant="onnx-fp32", backend="onnxruntime", device="cpu", batch=1, rounds=5, calls=100, p50_ms=1.0, p90_ms=None,
        p99_ms=None, images_per_second=1000.0, load_ms=3.0, ratio=1.0, ratio_low=0.9, ratio_high=1.1,
        verdict=Verdict.PASS, valid=False, reasons=("the machine was busy",),
    )  # fmt: skip
    report = BenchReport(
        bundle="b", created="now", machine=machine, threads=2, data="digits", baseline="onnx-fp32", rows=(row,)
    )
    assert from_json(to_json(report), BenchReport, what="it") == report


def test_the_same_record_gives_the_same_bytes() -> None:
    one = ParityRecord(variant="v", backend="b", device="d", verdict=Verdict.PASS, tools={"a": "1", "b": "2"})
    two = ParityRecord(variant="v", backend="b", device="d", verdict=Verdict.PASS, tools={"b": "2", "a": "1"})
    assert to_json(one) == to_json(two)


def test_json_is_utf8_indented_and_ends_with_a_newline() -> None:
    data = to_json(record(Verdict.PASS))
    assert data.startswith(b'{\n  "variant": "v",\n')
    assert data.endswith(b"}\n")


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "Input data was truncated"),
        (b"{", "Input data was truncated"),
        (b"\xff", "malformed"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"variant": "v"}', "missing required field `backend`"),
        (b'{"variant": 1}', "Expected `str`, got `int`"),
        (b'{"extra": 1}', "unknown field `extra`"),
        (b'{"variant": "\xff"}', "invalid"),
        (b"[" * 100_000, "Expected `object`"),
        (b'{"tools": ' + b'{"a":' * 100_000, "Expected `str`, got `object`"),
    ],
    ids=map(str, range(10)),
)
def test_what_is_no_record_is_refused_in_one_line(data: bytes, cause: str) -> None:
    with pytest.raises(BundleError, match="it cannot be read: ") as caught:
        from_json(data, ParityRecord, what="it")
    assert cause.lower() in caught.value.cause.lower()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_cannot_hold_never_comes_back_as_another(number: float) -> None:
    stats = OutputParity(
        output="o", samples=1, max_abs=number, mean_abs=0, relative_l2=0, cosine_min=1, cosine_mean=1
    )  # fmt: skip
    with pytest.raises((BundleError, ValueError)):
        from_json(to_json(stats), OutputParity, what="it")


def test_records_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        record(Verdict.FAIL).verdict = Verdict.PASS  # type: ignore[misc]


P, F, Q, U = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.UNPROVEN


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [([], U), ([U], U), ([U, U], U), ([P, U], P), ([P, P], P), ([P, Q, U], Q), ([P, Q, F, U], F), ([U, F], F)],
)
def test_the_verdict_of_a_report_is_the_worst_that_ran(verdicts: list[Verdict], whole: Verdict) -> None:
    report = ParityReport(bundle="b", created="now", variants=tuple(map(record, verdicts)))
    assert report.verdict is whole


def test_every_precision_has_thresholds_and_less_bits_may_stray_further() -> None:
    assert set(CEILINGS) == set(Precision)
    order = [CEILINGS[p] for p in (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)]
    for tight, loose in pairwise(order):
        assert tight.relative_l2 < loose.relative_l2
        assert tight.cosine > loose.cosine
        assert tight.flip_rate <= loose.flip_rate


def test_default_tools_are_not_shared_between_records() -> None:
    one, two = record(Verdict.PASS), record(Verdict.PASS)
    one.tools["torch"] = "2.14"
    assert two.tools == {}
    assert msgspec.json.decode(to_json(two))["tools"] == {}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (f"[{10**400}]", "more than 300 digits"),
        (f"[{-(10**300)}]", "more than 300 digits"),
        ("[" + ",".join(["1e308"] * 10_001) + "]", "more than 10,000 numbers beyond 1e100"),
    ],
)
def test_numbers_that_no_record_has_are_refused_before_anything_computes_with_them(text: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        check_numbers(text.encode())


def test_the_largest_numbers_and_digests_are_read() -> None:
    check_numbers(f'[{10**299}, 1e308, 1e-300, "{"9" * 64}", 1e200, "{"1e999" * 5}"]'.encode())
