"""What many tests share: a small trained checkpoint of the real digits, and the bundle that is exported from it."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it; before torch is imported

import fcntl
import gc
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggdeploy.bundle import Bundle
from vggdeploy.data.loaders import ImageSet, load_split
from vggdeploy.data.sources import default_preprocess
from vggdeploy.system.optional import installed
from vggdeploy.types import Precision

# A shell gives what it runs in the background an ignored SIGINT, which every child inherits: tests press Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """A machine with a GPU need not have pytest-timeout: then its option in pyproject.toml is known, and does nothing."""
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "seconds for a test, where pytest-timeout is installed")


def pytest_configure() -> None:
    """How long a machine takes to make an example says nothing about the package, so no property test fails for it."""
    if installed("hypothesis"):
        from hypothesis import HealthCheck, settings

        settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("any-machine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """``late``, ``slow``, ``gpu`` and ``network`` are opt-in: they run only when ``-m`` names them."""
    asked = config.getoption("-m") or ""
    for mark in ("late", "slow", "gpu", "network", "tensorrt"):
        if mark not in asked:
            skip = pytest.mark.skip(reason=f"opt in with -m {mark}")
            for item in items:
                if item.get_closest_marker(mark):
                    item.add_marker(skip)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A machine with a GPU may have little else: ``-m gpu`` imports only files with such tests, and what lies beside them."""
    if config.getoption("-m") != "gpu":
        return None
    found = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return not any("mark.gpu" in file.read_text(encoding="utf-8") for file in found) or None


@pytest.fixture(autouse=True)
def measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside other tests every row is unstable, and would be measured three times; a test of that says so itself."""
    if (module := sys.modules.get("vggdeploy.bench.run")) is not None:
        monkeypatch.setattr(module, "MORE", 0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither find nor leave engines and proofs in the cache of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VGGDEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_heartbeat() -> Iterator[None]:
    """What a command says on stderr does not depend on how busy this machine is; the heartbeat has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vggdeploy.cli.heartbeat.SOON", 3600.0)
        yield


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> None:
    """Sessions are opened after a full collection of garbage, thousands of times in a run of all tests: the millions of objects
    that libraries and pytest itself hold are left out of it."""
    gc.collect()
    gc.freeze()


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a directory once a run, whichever of pytest-xdist's workers asks first; the others wait, and find it whole.

    The first part of the name is whose place it is: nothing else may be made there.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    shared.mkdir(exist_ok=True)

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        home = shared / Path(name).parts[0]
        with home.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not home.exists():
                making = tmp_path_factory.mktemp(home.name)
                make(making / Path(name).relative_to(home.name))
                making.rename(home)
        return shared / name

    return make_once


@pytest.fixture
def any_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Foreign graphs get through, to plant what a library's kernels could do and only answers show."""
    monkeypatch.setattr("vggdeploy.model.formats.admission.CHECKED", {})


@pytest.fixture(scope="session")
def digits_test() -> ImageSet:
    """The digits' test images at 32 pixels."""
    return load_split("digits", "test", default_preprocess("digits", 32))


@pytest.fixture(scope="session")
def checkpoint(once: Once) -> Path:
    """A narrow VGG-11 with batch norm, trained on the digits for a few seconds. Treat it as read-only."""
    from vggdeploy.train.loop import train
    from vggdeploy.train.recipe import Recipe

    recipe = Recipe(arch="vgg11_bn", width=0.125, hidden=128, dropout=0.0, dataset="digits", epochs=8)
    return once("trained/checkpoint", lambda path: train(recipe, output=path))


@pytest.fixture(scope="session")
def bundle_dir(checkpoint: Path, once: Once) -> Path:
    """The bundle of that checkpoint: ONNX FP32 and FP16, TorchScript. Treat it as read-only."""
    from vggdeploy.export.bundle import export_bundle

    return once("exported/bundle", lambda path: export_bundle(checkpoint, path))


@pytest.fixture(scope="session")
def bundle(bundle_dir: Path) -> Bundle:
    return Bundle.open(bundle_dir)


@pytest.fixture(scope="session")
def float_bundle_dir(checkpoint: Path, once: Once) -> Path:
    """A bundle whose graph takes normalised float32 images. Treat it as read-only."""
    from vggdeploy.export.bundle import ExportOptions, export_bundle

    options = ExportOptions(formats=["onnx-fp32"], input_dtype="float32")
    return once("float/bundle", lambda path: export_bundle(checkpoint, path, options))


@pytest.fixture(scope="session")
def features_dir(checkpoint: Path, once: Once) -> Path:
    """A bundle with class scores, a vector and a feature map. Treat it as read-only."""
    from vggdeploy.export.bundle import ExportOptions, export_bundle

    options = ExportOptions(outputs=["logits", "fc7", "relu2_1"], formats=["onnx-fp32"], samples=50)
    return once("features/bundle", lambda path: export_bundle(checkpoint, path, options))


@pytest.fixture(scope="session")
def onnx_files(once: Once) -> dict[Precision, Path]:
    """FP32, FP16, BF16 and INT8 exports of one tiny VGG-11 with random weights. Treat them as read-only."""
    from fixtures.small import quantised, write_onnx

    def make(root: Path) -> None:
        root.mkdir()
        for precision in (Precision.FP32, Precision.FP16, Precision.BF16):
            write_onnx(root / f"{precision}.onnx", precision)
        quantised(root / f"{Precision.FP32}.onnx", root / f"{Precision.INT8}.onnx")

    root = once("tiny/onnx", make)
    return {p: root / f"{p}.onnx" for p in (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)}


@pytest.fixture
def own_bundle(bundle_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the bundle that a test may damage."""
    copy = tmp_path / "bundle"
    shutil.copytree(bundle_dir, copy)
    yield copy


@pytest.fixture(scope="session")
def digit_png(tmp_path_factory: pytest.TempPathFactory, digits_test: ImageSet) -> Path:
    """One test digit as a file, with its class as the name."""
    path = tmp_path_factory.mktemp("images") / f"{digits_test.labels[0]}.png"
    Image.fromarray(np.asarray(digits_test.images[0, ..., 0])).save(path)
    return path
