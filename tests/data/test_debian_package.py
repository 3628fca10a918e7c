"""The real Fashion-MNIST, where Debian's package is installed (CI installs it)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vggdeploy.data.loaders import load_split
from vggdeploy.data.sources import default_preprocess
from vggdeploy.data.torchvision_source import DEBIAN

PACKAGE, DIRECTORY = DEBIAN["fashion-mnist"]


@pytest.mark.skipif(not DIRECTORY.is_dir(), reason=f"apt-get install {PACKAGE}")
def test_ten_thousand_real_test_images_are_found_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = load_split("fashion-mnist", "test", default_preprocess("fashion-mnist", 28))
    assert found.images.shape == (10_000, 28, 28, 1)
    assert (np.bincount(found.labels) == 1000).all()
    assert (
        found.classes[found.labels[np.flatnonzero(found.indices == 0)[0]]] == "Ankle boot"
    )  # the well-known first one
    assert np.mean(found.images / 255) == pytest.approx(0.2868, abs=1e-4)
