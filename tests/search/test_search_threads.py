"""Threads as a dimension of the search: which counts are tried, and when fewer are worth it. No clock is read here."""

from __future__ import annotations

import pytest

from vggdeploy.records import BenchRow
from vggdeploy.search.trial import fastest, fewer
from vggdeploy.types import Verdict


@pytest.mark.parametrize(
    ("cores", "tried"), [(1, []), (2, [1]), (3, [1, 2]), (6, [1, 2, 4]), (8, [1, 2, 4]), (64, [1, 2, 4, 8, 16, 32])]
)
def test_every_power_of_two_below_all_cores_is_tried(cores: int, tried: list[int]) -> None:
    assert fewer(cores) == tried


def row(ratio: float) -> BenchRow:
    return BenchRow(
        variant="x", backend="onnxruntime", device="cpu", batch=1, rounds=7, calls=10, p50_ms=1 / ratio, p90_ms=1, p99_ms=1,
        ratio=ratio, ratio_low=0.9 * ratio, ratio_high=1.1 * ratio, images_per_second=ratio,
        load_ms=1, verdict=Verdict.PASS, valid=True,
    )  # fmt: skip


def test_fewer_threads_have_to_be_clearly_faster() -> None:
    found = fastest([
        ("a", 8, row(10)), ("a", 1, row(10.2)), ("a", 2, row(15)), ("a", 4, row(14)), ("b", 8, row(20)), ("b", 1, row(3)),
    ])  # fmt: skip
    assert {name: (speed.threads, speed.ratio) for name, speed in found.items()} == {"a": (2, 15), "b": (8, 20)}
    assert found["a"].latency_ms == pytest.approx(1 / 15)
