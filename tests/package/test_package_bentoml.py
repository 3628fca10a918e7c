"""A BentoML service: real BentoML, in an environment of its own, serves it without torch, and builds a Bento of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vggdeploy
from vggdeploy.bundle import Bundle
from vggdeploy.package.base import Order
from vggdeploy.package.bentoml import package_bentoml

pytestmark = pytest.mark.late
BENTOML = "bentoml==1.4.40"
# A test client of the service's own application: what a caller gets over HTTP, and what this process has imported.
_USE = """
import json, sys
from pathlib import Path
import numpy as np
from starlette.testclient import TestClient
import bentoml
service = bentoml.load(sys.argv[1])
images, picture = np.load(sys.argv[2]), Path(sys.argv[3]).read_bytes()
with TestClient(service.to_asgi()) as client:
    said = {
        "run": client.post("/run", json={"image": images.tolist()}).json(),
        "classify": client.post("/classify", files={"image": ("a.png", picture)}, data={"top": "3"}).json(),
        "refused": [
            client.post("/classify", files={"image": ("a.png", b"no image")}).status_code,
            client.post("/run", json={"image": (images[:1] + 0.5).tolist()}).status_code,
            client.post("/run", json={"image": (images[:1].astype(int) + 256).tolist()}).status_code,
            client.post("/run", json={"image": images[:1, :3].tolist()}).status_code,
        ],
        "ready": client.get("/readyz").status_code,
    }
assert "torch" not in sys.modules
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def package(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bentoml") / "service"
    package_bentoml(Order(bundle=Bundle.open(bundle_dir), output=root, variants=("onnx-fp32",)))
    return root


@pytest.fixture(scope="module")
def bin_(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BentoML pins much: it has an environment of its own, beside the packages that are here, with the package's wheel."""
    home = tmp_path_factory.mktemp("bentoml") / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    [site] = (home / "lib").glob("python3*/site-packages")
    (site / "here.pth").write_text(f"{Path(np.__file__).parents[1]}\n")
    pip = [home / "bin/python", "-m", "pip", "install", "-q"]
    subprocess.run([*pip, BENTOML], check=True, capture_output=True)
    subprocess.run([*pip, "--no-deps", *package.glob("*.whl")], check=True, capture_output=True)
    return home / "bin"


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    found = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    yield found | {"BENTOML_HOME": str(tmp_path / "home"), "BENTOML_DO_NOT_TRACK": "True"}


def test_real_bentoml_answers_what_the_engine_answers(
    package: Path, bin_: Path, environment: dict[str, str], bundle: Bundle, tmp_path: Path
) -> None:
    inputs, outputs = bundle.golden()
    images = inputs["image"][:5]
    np.save(tmp_path / "images.npy", images)
    Image.fromarray(images[0].squeeze()).save(tmp_path / "a.png")
    done = subprocess.run(
        [bin_ / "python", "-W", "ignore", "-c", _USE, package, tmp_path / "images.npy", tmp_path / "a.png"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(np.asarray(said["run"]["logits"], np.float32), outputs["logits"][:5], atol=1e-4)
    with vggdeploy.load(package / "bundle") as engine:
        expected = engine.classify(tmp_path / "a.png", top=3)
    assert [found["label"] for found in said["classify"]] == [found.label for found in expected]
    assert said["refused"] == [400, 400, 400, 400]
    assert said["ready"] == 200


def test_bentoml_builds_a_bento_with_the_bundle_and_this_vggdeploy(
    package: Path, bin_: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [bin_ / "bentoml", "build"], env=environment, cwd=package, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    [manifest] = (tmp_path / "home").rglob("manifest.json")
    Bundle.open(manifest.parent)
    [wheel] = (tmp_path / "home").rglob("vggdeploy-*.whl")
    assert wheel.read_bytes() == next(package.glob("*.whl")).read_bytes()


def test_an_altered_bundle_is_not_served(
    package: Path, bin_: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    own = shutil.copytree(package, tmp_path / "own")
    (model,) = (own / "bundle").rglob("*.onnx")
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    code = (
        "import sys, bentoml\nfrom starlette.testclient import TestClient\n"
        "with TestClient(bentoml.load(sys.argv[1]).to_asgi()): pass"
    )
    done = subprocess.run(
        [bin_ / "python", "-W", "ignore", "-c", code, own], env=environment, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "IntegrityError" in done.stderr
