"""A machine with a GPU for TensorRT for RTX, whose engines answer with ONNX Runtime: builds and everything else are real."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tensorrt_rtx

from vggdeploy.build import choice, request
from vggdeploy.build.readback import EngineFacts
from vggdeploy.engine import selection
from vggdeploy.errors import IncompatibleError
from vggdeploy.runtime import preflight
from vggdeploy.runtime.base import Array, Availability, Source
from vggdeploy.runtime.gpu.cuda import Gpu
from vggdeploy.runtime.tensorrt import rtx as backend
from vggdeploy.types import Device

ADA = Gpu(0, "NVIDIA GeForce RTX 4090", "sm89", "13.0")


class Machine:
    """``loads`` are the engine files that the library was given, ``runs`` the batches it ran."""

    def __init__(self) -> None:
        self.gpu = ADA
        self.version = str(tensorrt_rtx.__version__)
        self.off = 0.0  # added to every answer
        self.refuses: str | None = None
        self.loads: list[bytes] = []
        self.runs = 0


def machine_with_gpu(monkeypatch: pytest.MonkeyPatch, onnx: Path) -> Machine:
    """This machine, as if it were one. ``onnx`` computes what its engines answer."""
    here = Machine()

    class Session:
        def __init__(self, source: Source) -> None:
            self.inputs, self.outputs, self.source = source.inputs, source.outputs, source

        def __enter__(self) -> Session:
            import onnxruntime

            with self.source.open() as file:
                here.loads.append(bytes(file.map()))
            if here.refuses is not None and here.refuses in str(self.source.file.path):
                raise IncompatibleError("the library cannot load it", "build it again")
            self.session = onnxruntime.InferenceSession(onnx)
            return self

        def __exit__(self, *error: object) -> None:
            self.session = None

        def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            here.runs += 1
            [logits] = self.session.run(["logits"], dict(feeds))
            return {"logits": logits + np.float32(here.off)}

    def probe(device: Device) -> Availability:
        return Availability(True, f"{device} ({here.gpu.name})", version=here.version, builds=True)

    def host_of(variant: object, device: object) -> preflight.Host:
        return preflight.Host(here.version, here.gpu)

    monkeypatch.setattr(backend, "SESSION", Session)
    monkeypatch.setattr(backend, "probe", probe)
    for module in (choice, request):
        monkeypatch.setattr(module, "find_gpu", lambda device: here.gpu)
    monkeypatch.setattr(request, "use", lambda device: None)
    monkeypatch.setattr(request, "inspect_engine", lambda library, engine: EngineFacts({"fp16": 11}, ()))
    for module in (preflight, selection):
        monkeypatch.setattr(module, "host_of", host_of)
    return here
