"""A directory that `bentoml serve` runs and `bentoml build` packs: a service, the slim bundle, this vggdeploy as a wheel.

The fields of ``bentofile.yaml`` are those of https://docs.bentoml.com/en/latest/reference/bentoml/bento-build-options.html.
"""

from __future__ import annotations

from dataclasses import replace

from vggdeploy.package.base import Made, Order, chosen_variant, finish, package_directory
from vggdeploy.package.kserve import to_yaml
from vggdeploy.package.oci import BASE, RUNTIMES, requirements, write_wheel
from vggdeploy.package.slim import write_slim

SERVICE = '''"""Serves the bundle beside this file; callers that wait at the same time share a batch."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from bentoml.exceptions import InvalidArgument, ServiceUnavailable

import vggdeploy

BUNDLE = Path(__file__).parent / "bundle"


@contextmanager
def statuses():
    """400 for what a caller did wrong, 503 where too many wait; all else is BentoML's 500."""
    try:
        yield
    except vggdeploy.InputError as error:
        raise InvalidArgument(str(error)) from error
    except vggdeploy.Overloaded as error:
        raise ServiceUnavailable(str(error)) from error


@bentoml.service
class Classifier:
    def __init__(self) -> None:
        self.engine = vggdeploy.AsyncEngine(vggdeploy.load(BUNDLE))

    @bentoml.api
    async def classify(self, image: Path, top: int = 5) -> list[dict[str, Any]]:
        """Labels and probabilities of one image file, best first."""
        with statuses():
            return [dict(found) for found in await self.engine.classify(image.read_bytes(), top=top)]

    @bentoml.api
    async def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Every output for a batch of images, decoded and resized: uint8 [N, height, width, channels]."""
        spec = self.engine.engine.bundle.manifest.input
        with statuses():
            array = np.asarray(image).astype(spec.dtype, copy=False)
            if not np.array_equal(array, image):
                raise vggdeploy.InputError(f"values of {np.asarray(image).dtype} are no {spec.dtype}", f"give {spec}")
            return await self.engine.run({spec.name: array})

    @bentoml.on_shutdown
    def close(self) -> None:
        self.engine.close()
'''


def package_bentoml(order: Order) -> Made:
    """Write ``service.py``, ``bentofile.yaml``, the slim bundle, the wheel, and the packages that it was proven with.

    Raises:
        UsageError: a variant for a GPU: its libraries come from NVIDIA's own index.
        IncompatibleError: vggdeploy is not installed.
    """
    variant = chosen_variant(order, tuple(RUNTIMES), "a BentoML service")
    with package_directory(order) as root:
        write_slim(replace(order, output=root / "bundle", overwrite=False), variant)
        wheel = write_wheel(root)
        (root / "requirements.txt").write_text(requirements((*BASE, *RUNTIMES[variant.format])), encoding="utf-8")
        (root / "service.py").write_text(SERVICE, encoding="utf-8")
        python = {"requirements_txt": "./requirements.txt", "wheels": [f"./{wheel.name}"]}
        about = {"service": "service:Classifier", "include": ["service.py", "bundle/"], "python": python}
        (root / "bentofile.yaml").write_text(to_yaml(about), encoding="utf-8")
        package = finish(root, order, "bentoml", [variant])
    return Made(package, next=(f"bentoml serve {order.output}", f"(cd {order.output} && bentoml build)"))
