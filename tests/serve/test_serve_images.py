"""Image files over HTTP: the engine's answers, where the time went, and errors that tell the caller and nobody else."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serve.conftest import Live, live_server

import vggdeploy
from vggdeploy.serve.settings import Settings


@pytest.fixture(scope="module")
def features(features_dir: Path) -> Iterator[Live]:
    with live_server(Settings(bundle=str(features_dir))) as found:
        yield found


def test_a_file_as_body_or_form_is_answered_as_by_the_engine(live: Live, digit_png: Path, bundle_dir: Path) -> None:
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as engine:
        expected = [(p.label, p.index) for p in engine.classify(digit_png, top=3)]
    data = digit_png.read_bytes()
    replies = [
        live.client.post("/classify?top=3", content=data),
        live.client.post("/classify?top=3", content=data, headers={"Content-Type": "image/png"}),
        live.client.post("/classify?top=3", files={"file": ("any name.png", data, "image/png")}),
        live.client.post("/classify?top=3", files={"picture": data}),
    ]
    for reply in replies:
        assert reply.status_code == 200, reply.text
        found = reply.json()
        assert [(p["label"], p["index"]) for p in found["predictions"]] == expected
        assert found["model"] == "bundle"
        assert found["variant"] == "onnx-fp32"
        assert found["request_id"] == reply.headers["x-request-id"]


def test_the_time_is_split_and_the_parts_are_no_more_than_the_whole(live: Live, digit_png: Path) -> None:
    found = live.client.post("/classify", content=digit_png.read_bytes()).json()
    times = found["time_ms"]
    assert set(times) == {"receive", "decode", "queue", "compute", "total"}
    assert sum(ms for name, ms in times.items() if name != "total") <= times["total"] + 0.01
    assert found["batch"] == 1


def test_a_vector(features: Live, digit_png: Path, features_dir: Path) -> None:
    data = digit_png.read_bytes()
    with vggdeploy.load(features_dir) as engine:
        plain = engine.embed(digit_png)[0]
        pooled = engine.embed(digit_png, output="relu2_1", pool="max", normalise=True)[0]
    reply = features.client.post("/embed", content=data)
    assert np.allclose(reply.json()["vector"], plain, atol=1e-4)
    reply = features.client.post("/embed?output=relu2_1&pool=max&normalise=true", content=data)
    assert np.allclose(reply.json()["vector"], pooled, atol=1e-4)
    for query, told in (("output=fc8", "did you mean 'fc7'"), ("pool=sum", "pool 'sum' is unknown")):
        reply = features.client.post(f"/embed?{query}", content=data)
        assert reply.status_code == 400
        assert told in str(reply.json())


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "told"),
    [
        (b"", 400, "0 bytes"),
        (b"no image", 400, "known format"),
        (png(32, 32)[:45], 400, "damaged"),
        (png(6000, 6000), 400, "the limit is 25,000,000"),
        (png(200_000, 1), 400, "cut it"),
        (b"x" * (16 * 2**20 + 1), 413, "larger than 16777216 bytes"),
    ],
    ids=["empty", "text", "cut short", "large", "long", "heavy"],
)
def test_what_is_no_image_or_too_large_is_told_in_one_line(live: Live, content: bytes, status: int, told: str) -> None:
    reply = live.client.post("/classify", content=content)
    assert reply.status_code == status
    assert told in str(reply.json())
    assert "\n" not in reply.json()["error"]
    assert "/" not in reply.json()["error"].replace("×", "")
    assert "0x" not in reply.json()["error"]


@pytest.mark.parametrize("query", ["top=0", "top=-1", "top=1001", "top=many", "top="])
def test_a_wrong_number_of_answers_is_422(live: Live, query: str, digit_png: Path) -> None:
    reply = live.client.post(f"/classify?{query}", content=digit_png.read_bytes())
    assert reply.status_code == 422
    assert reply.json()["error"].startswith("top: ")


def test_a_form_without_exactly_one_file_is_refused(live: Live, digit_png: Path) -> None:
    data = digit_png.read_bytes()
    two = live.client.post("/classify", files=[("file", data), ("file", data)])
    none = live.client.post("/classify", files={"file": (None, "text")})
    empty = live.client.post("/classify", files={"file": ("x.png", b"")})
    rubbish = live.client.post("/classify", content=b"rubbish", headers={"Content-Type": "multipart/form-data"})
    assert [reply.status_code for reply in (two, none, empty, rubbish)] == [400] * 4
    assert all(reply.json()["error"] for reply in (two, none, empty, rubbish))


def test_scores_are_no_features(live: Live, digit_png: Path) -> None:
    reply = live.client.post("/embed", content=digit_png.read_bytes())
    assert reply.status_code == 400
    assert "no features" in reply.json()["error"]


def test_the_openapi_document_names_every_route_and_no_docs_page_asks_a_cdn(live: Live) -> None:
    paths = live.client.get("/openapi.json").json()["paths"]
    assert {"/classify", "/embed", "/metrics", "/v2", "/v2/health/ready", "/v2/models/{model}/infer"} <= set(paths)
    assert live.client.get("/docs").status_code == 404
    assert live.client.get("/redoc").status_code == 404


def test_metrics_count_answers_batches_and_stages(live: Live, digit_png: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    def numbers() -> dict[tuple[str, ...], float]:
        text = live.client.get("/metrics").text
        return {
            (s.name, *sorted(s.labels.values())): s.value
            for f in text_string_to_metric_families(text)
            for s in f.samples
        }

    before = numbers()
    for content in (digit_png.read_bytes(), digit_png.read_bytes(), b"no image"):
        live.client.post("/classify", content=content)
    live.client.get("/nothing")
    after = numbers()

    def more(*key: str) -> float:
        return after[key] - before.get(key, 0)

    assert more("vggdeploy_requests_total", "/classify", "200") == 2
    assert more("vggdeploy_requests_total", "/classify", "400") == 1
    assert more("vggdeploy_requests_total", "404", "other") == 1
    assert more("vggdeploy_batch_rows_count") == 2
    assert more("vggdeploy_batch_rows_sum") == 2
    for stage in ("decode", "queue", "compute"):
        assert more("vggdeploy_stage_seconds_count", stage) == 2
    assert after["vggdeploy_ready",] == 1
    assert after["vggdeploy_queue_waiting",] == 0
    assert any(key[0] == "vggdeploy_model_info" and "onnx-fp32" in key for key in after)
