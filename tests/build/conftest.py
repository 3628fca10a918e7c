"""What the builder's tests share: a bundle of tiny ONNX files, the library, and a cache of one's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fixtures.small import BATCH, write_bundle

from vggdeploy.build.targets import set_targets
from vggdeploy.build.tensorrt import BuildResult, build_engine
from vggdeploy.bundle import Bundle
from vggdeploy.types import Precision


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own: what an earlier test built is not found by the next."""
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def library() -> ModuleType:
    import tensorrt_rtx  # which a machine for -m gpu need not have

    return tensorrt_rtx


@pytest.fixture
def bundle(tmp_path: Path, onnx_files: dict[Precision, Path]) -> Bundle:
    """A bundle with ONNX in FP32 and FP16."""
    return write_bundle(tmp_path / "bundle", {p: onnx_files[p] for p in (Precision.FP32, Precision.FP16)})


@pytest.fixture
def build(tmp_path: Path, library: ModuleType) -> Callable[..., tuple[BuildResult, bytes]]:
    """Build an ONNX file with the real TensorRT for RTX; gives the record and the engine's bytes."""

    def run(
        source: Path,
        *,
        precision: Precision = Precision.FP16,
        targets: tuple[str, ...] = ("sm89",),
        library: Any = library,
        **options: Any,
    ) -> tuple[BuildResult, bytes]:
        target = tmp_path / "model.engine"
        built = build_engine(
            library,
            source,
            target,
            precision=precision,
            **{"profiles": [BATCH]} | options,
            configure=partial(set_targets, library, targets=targets),
        )
        return built, target.read_bytes()

    return run
