"""A server tells when its requests become others than the bundle's test images, and keeps no image."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from serve.conftest import Live, live_server

from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.data.loaders import ImageSet
from vggdeploy.records import from_json
from vggdeploy.records.drift import DriftReport, DriftStatistic
from vggdeploy.serve import drift as drift_module
from vggdeploy.serve.drift import STATISTICS, Drift
from vggdeploy.serve.settings import Settings


@pytest.fixture(autouse=True)
def _all_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_module, "PER_SECOND", 1e9)


def told(live: Live) -> DriftReport:
    watch: Drift = live.app.state.models.drift
    assert watch.settle()
    reply = live.client.get("/drift")
    assert reply.status_code == 200
    return from_json(reply.content, DriftReport, what="the answer")


def by_name(report: DriftReport) -> dict[str, DriftStatistic]:
    return {one.name: one for one in report.statistics}


def ask(live: Live, images: np.ndarray) -> None:
    for number, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image[..., 0]).save(file, "PNG")
        assert live.client.post("/classify", content=file.getvalue()).status_code == 200
        if number % 50 == 49:
            told(live)


def test_a_bundle_records_what_its_test_images_are_like(bundle: Bundle, digits_test: ImageSet) -> None:
    known = bundle.manifest.population
    assert known is not None
    assert known.images == len(digits_test.images)
    assert known.data.startswith("digits test")
    assert known.means["brightness"] == pytest.approx(float(digits_test.images.mean()), abs=0.01)
    assert sum(known.counts["class"]) == known.images


def test_the_test_images_themselves_are_no_drift_and_darkened_ones_are(bundle_dir: Path, digits_test: ImageSet) -> None:
    with live_server(Settings(bundle=str(bundle_dir), variant="onnx-fp32", drift=True)) as live:
        ask(live, digits_test.images[:150])
        quiet = told(live)
        assert not quiet.alarm
        found = by_name(quiet)
        assert {one.observed for one in quiet.statistics} == {150}
        assert found["brightness"].against.startswith("digits test")
        assert found["size"].against == "the server's first requests"
        assert found["size"].mean == 10  # 32 × 32
        ask(live, digits_test.images[150:300] // 3)
        after = told(live)
        assert {"brightness", "contrast"} <= {one.name for one in after.statistics if one.alarm}
        assert not by_name(after)["size"].alarm
        text = live.client.get("/metrics").text
        assert 'vggdeploy_drift_alarm{statistic="brightness"} 1.0' in text
        assert 'vggdeploy_drift_alarm{statistic="size"} 0.0' in text


def test_larger_files_alone_are_told_by_their_size(bundle_dir: Path, digits_test: ImageSet) -> None:
    with live_server(Settings(bundle=str(bundle_dir), variant="onnx-fp32", drift=True)) as live:
        ask(live, digits_test.images[:100])
        ask(live, digits_test.images[100:160].repeat(2, axis=1).repeat(2, axis=2))
        assert by_name(told(live))["size"].alarm


def test_arrays_are_watched_too_and_a_new_version_begins_anew(own_bundle: Path, digits_test: ImageSet) -> None:
    with live_server(Settings(bundle=str(own_bundle), variant="onnx-fp32", drift=True)) as live:
        body = {
            "inputs": [
                {
                    "name": "image",
                    "shape": [1, 32, 32, 1],
                    "datatype": "UINT8",
                    "data": digits_test.images[0].ravel().tolist(),
                }
            ]
        }
        live.client.post("/v2/models/bundle/infer", json=body)
        first = told(live)
        assert by_name(first)["brightness"].mean == pytest.approx(float(digits_test.images[0].mean()), abs=0.001)
        opened = Bundle.open(own_bundle)
        with update_bundle(opened) as draft:
            draft.manifest = msgspec.structs.replace(opened.manifest, population=None)
        live.engine.reload()
        live.client.post("/v2/models/bundle/infer", json=body)
        second = told(live)
        assert second.digest != first.digest
        assert by_name(second)["brightness"].observed == 1
        assert "no record of its test images" in second.note
        assert by_name(second)["brightness"].against == "the server's first requests"


def test_no_image_is_kept(bundle_dir: Path, digits_test: ImageSet) -> None:
    import gc

    with live_server(Settings(bundle=str(bundle_dir), variant="onnx-fp32", drift=True)) as live:
        file = io.BytesIO()
        Image.fromarray(digits_test.images[0, ..., 0]).save(file, "PNG")
        data = file.getvalue() + b"only in this test"
        live.client.post("/classify", content=data)
        assert len(told(live).statistics) == len(STATISTICS)
        del file
        watch: Drift = live.app.state.models.drift
        assert not watch._aside._items
        gc.collect()
        pixels = [o for o in gc.get_referrers(watch) if isinstance(o, (bytes, np.ndarray))]
        assert pixels == []
        for watched in watch._watched.values():
            assert {type(value) for value in vars(watched.test).values()} <= {
                np.ndarray, np.random.Generator, float, int,
            }  # fmt: skip
            assert watched.test._pool.size <= 64  # counts by bin


def test_a_server_that_does_not_watch_says_so(live: Live) -> None:
    reply = live.client.get("/drift")
    assert (reply.status_code, reply.json()["fix"]) == (404, "start it with --drift")
