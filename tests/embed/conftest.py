"""What the tests of embeddings share: the bundle with features, open on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import vggdeploy
from vggdeploy.engine.engine import Engine


@pytest.fixture(scope="session")
def engine(features_dir: Path) -> Iterator[Engine]:
    with vggdeploy.load(features_dir, variant="onnx-fp32") as opened:
        yield opened
