"""An MLflow model: real MLflow, in an environment of its own, loads and serves it without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from vggdeploy.bundle import Bundle
from vggdeploy.engine.pyfunc import _load_pyfunc
from vggdeploy.errors import InputError, IntegrityError
from vggdeploy.package.base import Order
from vggdeploy.package.mlflow import LOADER, package_mlflow

pytestmark = pytest.mark.late
MLFLOW = ("mlflow-skinny==3.17.2", "pandas==2.3.3")
_USE = """
import json, sys
from pathlib import Path
import mlflow, numpy as np
from fastapi.testclient import TestClient
from mlflow.pyfunc.scoring_server import init
assert "vggdeploy" not in sys.modules
model = mlflow.pyfunc.load_model(sys.argv[1])
images = np.load(sys.argv[2])
found = model.predict({"image": images})["logits"]
import vggdeploy
assert Path(vggdeploy.__file__).is_relative_to(Path(sys.argv[1]).resolve()), vggdeploy.__file__
with TestClient(init(model)) as client:
    assert client.get("/ping").status_code == 200
    answer = client.post("/invocations", json={"inputs": {"image": images[:2].tolist()}})
    assert answer.status_code == 200, answer.text
    served = np.asarray(answer.json()["predictions"]["logits"], np.float32)
    wrong = client.post("/invocations", json={"inputs": {"picture": images[:2].tolist()}})
    assert wrong.status_code == 400, wrong.text
assert np.allclose(served, found[:2], atol=1e-6)
assert not {"torch", "cloudpickle_model"} & set(sys.modules)
np.save(sys.argv[3], found)
print(json.dumps(model.metadata.signature.to_dict()))
"""


@pytest.fixture(scope="module")
def package(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mlflow") / "model"
    package_mlflow(Order(bundle=Bundle.open(bundle_dir), output=root, variants=("onnx-fp32",)))
    return root


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow pins much: it has an environment of its own, beside the packages that are here already."""
    home = tmp_path_factory.mktemp("mlflow") / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    [site] = (home / "lib").glob("python3*/site-packages")
    (site / "here.pth").write_text(f"{Path(np.__file__).parents[1]}\n")
    subprocess.run([home / "bin/python", "-m", "pip", "install", "-q", *MLFLOW], check=True, capture_output=True)
    return home / "bin/python"


def test_real_mlflow_loads_and_serves_it(package: Path, python: Path, bundle: Bundle, tmp_path: Path) -> None:
    inputs, outputs = bundle.golden()
    np.save(tmp_path / "images.npy", inputs["image"])
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/none.db", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [python, "-W", "ignore", "-c", _USE, package, tmp_path / "images.npy", tmp_path / "found.npy"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.allclose(np.load(tmp_path / "found.npy"), outputs["logits"], atol=1e-4)
    signature = json.loads(done.stdout.splitlines()[-1])
    assert '"shape": [-1, 32, 32, 1]' in signature["inputs"]


def test_it_says_how_to_load_it_and_holds_no_pickle(package: Path) -> None:
    described = yaml.safe_load((package / "MLmodel").read_text())
    function = described["flavors"]["python_function"]
    assert function["loader_module"] == LOADER
    assert (package / function["data"] / "manifest.json").is_file()
    assert (package / function["code"] / "vggdeploy/engine/pyfunc.py").is_file()
    assert not [p for p in package.rglob("*") if p.suffix in (".pkl", ".pickle", ".pth", ".pt")]
    assert "torch" not in (package / "requirements.txt").read_text()


def test_an_altered_model_is_not_loaded(package: Path, tmp_path: Path) -> None:
    own = shutil.copytree(package / "bundle", tmp_path / "bundle")
    (model,) = own.rglob("*.onnx")
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityError):
        _load_pyfunc(str(own))


def test_what_the_input_does_not_hold_is_refused(package: Path) -> None:
    function = _load_pyfunc(str(package / "bundle"))
    image = np.zeros((1, 32, 32, 1), np.int64)
    assert function.predict(image)["logits"].shape == (1, 10)
    for wrong in (image - 1, image + 256, image + 0.5, {"picture": image}, np.full(image.shape, "x"), image * np.nan):
        with pytest.raises(InputError):
            function.predict(wrong)
    function.engine.close()
