"""What the tests of embeddings share: a bundle with scores, a vector and a feature map, open on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import vggdeploy
from vggdeploy.engine import Engine
from vggdeploy.pipeline.export import export_bundle


@pytest.fixture(scope="session")
def features_dir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "bundle"
    export_bundle(checkpoint, path, outputs=["logits", "fc7", "relu2_1"], formats=["onnx-fp32"], samples=50)
    return path


@pytest.fixture(scope="session")
def engine(features_dir: Path) -> Iterator[Engine]:
    with vggdeploy.load(features_dir, variant="onnx-fp32") as opened:
        yield opened
