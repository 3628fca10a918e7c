"""The networks a fit chooses among: any of them can be built, is as fast as was asked, and what is beaten is not shown."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from vggdeploy.data.sources import get_dataset
from vggdeploy.data.specs import DATASETS
from vggdeploy.fit.family import BANDS, Family, frontier
from vggdeploy.fit.latency import LatencyTable
from vggdeploy.model.layers import summarise
from vggdeploy.optimize.steps.widths import macs_of
from vggdeploy.records.fit import FitTrial, MeasuredLatency, Rung

FAMILY = Family.of(get_dataset("fashion-mnist"))


def trial(number: int, ms: float, hits: int, *, band: int = 0) -> FitTrial:
    shape = FAMILY.reference(2)
    spec = FAMILY.spec(shape, 8)
    about = summarise(spec)
    return FitTrial(
        number=number, band=band, shape=shape, spec=spec, macs=about.macs, parameters=about.parameters,
        latency=MeasuredLatency(variant="onnx-fp32", threads=1, ms=ms),
        rungs=(Rung(epochs=1, hits=hits, samples=100, seconds=1.0),) if hits else (),
    )  # fmt: skip


@pytest.mark.parametrize("name", DATASETS)
def test_every_network_of_a_family_can_be_built(name: str) -> None:
    family = Family.of(get_dataset(name))
    reference = family.reference(2)
    for size in family.image_sizes:
        for blocks, head, first in itertools.product(family.depths(size), ("avg", "max", "flat"), (1, 2)):
            shape = msgspec.structs.replace(reference, image_size=size, blocks=blocks, head=head, first=first)
            spec = family.spec(shape, 24)
            assert spec.image_size == size
            assert len(spec.blocks) == blocks
            assert all(c % 8 == 0 for block in spec.blocks for c in block)


def test_a_mirror_image_of_a_digit_trains_nothing() -> None:
    assert not any("flip" in augment for augment in Family.of(get_dataset("mnist")).augments)
    assert any("flip" in augment for augment in FAMILY.augments)


def test_the_width_is_the_one_that_takes_the_time_that_is_asked_for() -> None:
    for band in range(BANDS):
        ratio = macs_of(FAMILY.sized(FAMILY.reference(band), FAMILY.macs(band), macs_of)) / FAMILY.macs(band)
        assert 0.6 < ratio < 1.6
    shape = FAMILY.reference(3)
    table = LatencyTable()
    one, other = (msgspec.structs.replace(shape, convs=convs) for convs in (1, 3))
    target = table.predict(FAMILY.sized(one, FAMILY.macs(3), macs_of))
    assert table.predict(FAMILY.sized(other, target, table.predict)) == pytest.approx(target, rel=0.35)


def test_the_frontier_has_no_network_that_another_beats() -> None:
    beaten = [trial(2, 2.0, 80), trial(3, 1.0, 70), trial(4, 9.0, 95)]
    kept = [trial(0, 1.0, 80), trial(1, 3.0, 95)]
    assert [t.number for t in frontier([*beaten, *kept, trial(5, 0.1, 0)])] == [0, 1]


def test_a_teachers_image_size_is_the_only_one() -> None:
    assert Family.of(get_dataset("fashion-mnist"), teacher_size=64).image_sizes == (64,)


def test_latencies_that_were_measured_are_predicted_and_no_cost_is_negative() -> None:
    table = LatencyTable()
    specs = [FAMILY.sized(FAMILY.reference(band), FAMILY.macs(band), macs_of) for band in range(BANDS)]
    for spec in specs:
        table.add(spec, MeasuredLatency(variant="v", threads=1, ms=0.05 + macs_of(spec) / 5e7))
    for spec in specs:
        assert table.predict(spec) == pytest.approx(0.05 + macs_of(spec) / 5e7, rel=0.3)
    # The larger, the faster: no rule of costs says that, and none below 0 comes of it.
    odd = LatencyTable()
    for at, spec in enumerate(specs):
        odd.add(spec, MeasuredLatency(variant="v", threads=1, ms=1 / (at + 1)))
    assert all(cost >= 0 for cost in odd._costs())
    assert all(odd.predict(spec) > 0 for spec in specs)
