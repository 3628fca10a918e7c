"""The page's modules in Node.js, asked from here."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import vggdeploy.package
from vggdeploy.package.cpp import tall_first
from vggdeploy.spec import PreprocessSpec

SITE = Path(vggdeploy.package.__file__).with_name("web_site")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js (apt-get install nodejs)")


class Refused(Exception):
    """What a module raised; ``known``: as the error that a page shows."""

    def __init__(self, message: str, *, known: bool) -> None:
        super().__init__(message)
        self.known = known


class Modules:
    """One Node.js for many calls."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, name: str, **args: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": name, **args}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise Refused(answer["error"], known=answer["known"])
        return answer["value"]

    def prepare(self, file: bytes, spec: PreprocessSpec) -> NDArray[np.uint8]:
        return self._pixels(self("prepare", file=text(file), recipe=recipe(spec)), spec)

    def prepare_pixels(self, array: NDArray[np.uint8], orientation: int, spec: PreprocessSpec) -> NDArray[np.uint8]:
        height, width, channels = array.shape
        image = {"data": text(array.tobytes()), "width": width, "height": height, "channels": channels}
        return self._pixels(self("pixels", **image, orientation=orientation, recipe=recipe(spec)), spec)

    def bytes(self, name: str, file: bytes) -> bytes:
        return base64.b64decode(self(name, file=text(file)))

    @staticmethod
    def _pixels(answer: str, spec: PreprocessSpec) -> NDArray[np.uint8]:
        return np.frombuffer(base64.b64decode(answer), np.uint8).reshape(spec.crop, spec.crop, spec.channels)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def recipe(spec: PreprocessSpec) -> dict[str, object]:
    return {
        "channels": spec.channels, "resize": spec.resize, "crop": spec.crop, "interpolation": spec.interpolation,
        "tall_first": tall_first(),
    }  # fmt: skip


@contextmanager
def modules() -> Iterator[Modules]:
    command = ["node", str(Path(__file__).with_name("web_node.mjs")), f"{SITE.as_uri()}/lib/"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield Modules(process)
        assert process.stdin is not None
        process.stdin.close()
