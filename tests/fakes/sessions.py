"""An engine file, and a fake GPU to open it on (see `fakes.gpu`): fixtures for the rooms that open sessions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fakes.network import CLASSES, C, H, W

from vggdeploy.runtime.base import Source
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.tensorrt import session as backend
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import BatchRange, Device, TensorSpec

if TYPE_CHECKING:  # the fake takes its enumerations from tensorrt_rtx, which a machine for -m gpu need not have
    from fakes.gpu import Cudart, Library

ENGINE_BYTES = b"vtrt and what follows"


def source_at(path: Path) -> Source:
    """Of an engine of the fakes' network, whose file is written first."""
    path.write_bytes(ENGINE_BYTES)
    return Source(
        file=HashedFile.of(path),
        spec=ModelSpec.named("vgg11", image_size=32),
        preprocess=PreprocessSpec(),
        inputs=(TensorSpec("image", "uint8", ("N", H, W, C)),),
        outputs=(TensorSpec("logits", "float32", ("N", CLASSES)),),
        batch=BatchRange(1, 2, 4),
        device=Device("cuda"),
    )


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return source_at(tmp_path / "model.engine")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Cudart, Library]]:
    """Puts a fake CUDA runtime and a fake library in place."""
    from fakes.gpu import Cudart, Library

    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))

    def put(cudart: Cudart | None = None, library: Library | None = None) -> tuple[Cudart, Library]:
        cudart, library = cudart or Cudart(), library or Library()
        library.cudart = cudart
        monkeypatch.setattr(cuda, "bindings", lambda: cudart)
        monkeypatch.setattr(cuda, "find_gpu", lambda device: cuda.Gpu(0, "Test GPU", "sm89", "13.0"))
        monkeypatch.setattr(backend, "backend_library", lambda *a, **k: library)
        return cudart, library

    return put
