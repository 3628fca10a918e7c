"""A directory that MLflow loads as an ``mlflow.pyfunc`` model, without torch and without pickle.

MLflow imports the ``loader_module`` that ``MLmodel`` names, and hands it the bundle's directory. The fields are those of
https://mlflow.org/docs/latest/ml/model/#storage-format.
"""

from __future__ import annotations

import json
import sys
import zipfile
from dataclasses import replace
from typing import Any

from vggdeploy._version import __version__
from vggdeploy.bundle import Manifest, Variant
from vggdeploy.package.base import Made, Order, chosen_variant, finish, package_directory
from vggdeploy.package.kserve import to_yaml
from vggdeploy.package.oci import BASE, RUNTIMES, requirements, write_wheel
from vggdeploy.package.slim import write_slim
from vggdeploy.types import TensorSpec

LOADER = "vggdeploy.engine.pyfunc"


def package_mlflow(order: Order) -> Made:
    """Write ``MLmodel``, the slim bundle, this vggdeploy as ``code/``, and the packages that it was proven with.

    Raises:
        UsageError: a variant for a GPU: its libraries come from NVIDIA's own index.
        IncompatibleError: vggdeploy is not installed.
    """
    variant = chosen_variant(order, tuple(RUNTIMES), "an MLflow model")
    with package_directory(order) as root:
        write_slim(replace(order, output=root / "bundle", overwrite=False), variant)
        wheel = write_wheel(root)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / "code")
        wheel.unlink()
        packages = requirements((*BASE, *RUNTIMES[variant.format]))  # vggdeploy itself lies in code/
        (root / "requirements.txt").write_text(packages, encoding="utf-8")
        environment = {"python": _python(), "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
        (root / "python_env.yaml").write_text(to_yaml(environment), encoding="utf-8")
        (root / "MLmodel").write_text(to_yaml(_description(order.bundle.manifest, variant)), encoding="utf-8")
        package = finish(root, order, "mlflow", [variant])
    return Made(
        package,
        next=(
            f"mlflow models serve -m {order.output} --env-manager local --port 5000",
            f"python -c \"import mlflow; print(mlflow.pyfunc.load_model('{order.output}'))\"",
        ),
    )


def _python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _description(manifest: Manifest, variant: Variant) -> dict[str, Any]:
    pyfunc = {
        "code": "code",
        "data": "bundle",
        "env": {"virtualenv": "python_env.yaml"},
        "loader_module": LOADER,
        "python_version": _python(),
    }
    about = {"version": __version__, "variant": variant.name, "digest": manifest.digest}
    return {
        "flavors": {"python_function": pyfunc, "vggdeploy": about},
        "signature": {"inputs": _tensors([manifest.input]), "outputs": _tensors(manifest.outputs), "params": None},
        "utc_time_created": manifest.created.removesuffix("Z").replace("T", " "),
    }


def _tensors(specs: Any) -> str:
    """MLflow keeps a signature as JSON in a string; -1 is the batch."""
    return json.dumps([_tensor(spec) for spec in specs])


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "type": "tensor", "tensor-spec": {"dtype": spec.dtype, "shape": [-1, *spec.item_shape]}}
