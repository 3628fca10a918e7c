"""A bundle that went through `optimize` is served by whatever `auto` takes, and answers as the reference does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from serve.conftest import Live, Starts, live_server

from vggdeploy.bundle import Bundle, Measurement, update_bundle
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.serve.settings import Settings
from vggdeploy.system.machine import fingerprint

pytest.importorskip("openvino")

BACKENDS = ("onnxruntime", "openvino", "torch", "torchscript")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def optimised(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose OpenVINO variant was the fastest here, so that `auto` takes it."""
    path = tmp_path_factory.mktemp("optimised") / "bundle"
    formats = ["onnx-fp32", "torchscript-fp32", "openvino-fp32"]
    export_bundle(checkpoint, path, ExportOptions(formats=formats, samples=8))
    opened = Bundle.open(path)
    with update_bundle(opened) as draft:
        fast = Measurement(machine=fingerprint(), backend="openvino", batch=1, p50_ms=0.001, threads=1)
        variants = tuple(
            msgspec.structs.replace(v, measured=(fast,)) if v.name == "openvino-fp32" else v
            for v in opened.manifest.variants
        )
        draft.manifest = msgspec.structs.replace(opened.manifest, variants=variants)
    return path


@pytest.fixture(scope="module", params=["auto", *BACKENDS])
def served(request: pytest.FixtureRequest, optimised: Path) -> Iterator[Live]:
    with live_server(Settings(bundle=str(optimised), backend=request.param)) as found:
        if request.param == "auto":
            assert found.engine.health().variant == "openvino-fp32"
        yield found


def test_an_uploaded_image_is_classified(served: Live, digit_png: Path) -> None:
    reply = served.client.post("/classify", content=digit_png.read_bytes())
    assert reply.status_code == 200, reply.text
    assert reply.json()["predictions"][0]["label"] == digit_png.stem


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("binary", [True, False])
def test_tensors_are_answered_as_the_reference_does(served: Live, optimised: Path, rows: int, binary: bool) -> None:
    golden, logits = Bundle.open(optimised).golden()
    images = golden["image"][:rows]
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(images.shape)}
    if binary:
        head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": images.nbytes}}]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        reply = served.client.post("/v2/models/bundle/infer", content=head + images.tobytes(), headers=headers)
    else:
        reply = served.client.post(
            "/v2/models/bundle/infer", json={"inputs": [{**tensor, "data": images.ravel().tolist()}]}
        )
    assert reply.status_code == 200, reply.text
    found = np.reshape(reply.json()["outputs"][0]["data"], (rows, -1))
    np.testing.assert_allclose(found, logits["logits"][:rows], atol=TOLERANCE)


@pytest.mark.late
def test_the_command_serves_an_optimised_bundle(start: Starts, optimised: Path, digit_png: Path) -> None:
    import httpx

    command = start(optimised, "--drain", "0")
    with httpx.Client(base_url=command.url) as client:
        assert client.get("/v2/models/bundle").status_code == 200
        reply = client.post("/classify", files={"file": digit_png.read_bytes()})
        alone = client.post("/classify", content=digit_png.read_bytes())
    assert "openvino-fp32" in "".join(command.lines)
    assert alone.json()["predictions"][0]["label"] == digit_png.stem
    assert reply.json()["predictions"][0]["label"] == digit_png.stem
    assert command.stop() == 0
