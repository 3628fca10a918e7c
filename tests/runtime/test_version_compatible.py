"""A version-compatible engine of an older release is run by the lean runtime of that release, where that is installed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.gpu import expected, pixels

from vggdeploy.bundle import BuildRecord, Variant
from vggdeploy.errors import IncompatibleError
from vggdeploy.runtime import preflight
from vggdeploy.runtime.tensorrt.lean import PACKAGES, find_lean
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.types import BatchRange, Device, Precision

Installed = tuple[str, ...]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lays packages out as their wheels do: a module with the library, and the distribution's metadata."""

    def put(version: str, *packages: str, library: str = "") -> Path:
        home = tmp_path / "site" / "tensorrt_lean_libs"
        home.mkdir(parents=True)
        (home / "__init__.py").touch()
        path = home / (library or f"libnvinfer_lean.so.{version.partition('.')[0]}")
        path.write_bytes(b"ELF")
        for name in packages:
            about = tmp_path / "site" / f"{name.replace('-', '_')}-{version}.dist-info"
            about.mkdir()
            (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
        return path

    return put


def record(version: str = "1.6.0.2", **options: str) -> BuildRecord:
    return BuildRecord(
        library="tensorrt", version=version, source="onnx-fp16", source_sha256="0" * 64, targets=("sm89",),
        options=options, seconds=1.0,
    )  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES)
def test_it_is_found_as_pip_installs_it(installed, package: str) -> None:
    assert find_lean() is None
    path = installed("11.3.0.12", package)
    assert (find_lean().version, find_lean().path) == ("11.3.0.12", path)


def test_two_that_overwrite_each_other_are_none_and_so_is_one_without_its_library(installed, tmp_path) -> None:
    installed("11.3.0.12", *PACKAGES)
    assert find_lean() is None


def test_a_package_whose_library_is_another_s_is_none(installed) -> None:
    installed("11.3.0.12", PACKAGES[0], library="libnvinfer_lean.so.10")
    assert find_lean() is None


def test_the_engine_is_given_to_that_runtime_and_all_is_freed(gpu, source, installed) -> None:
    path = installed("1.6.0.2", PACKAGES[0])
    cudart, library = gpu()  # of 1.7.1
    old = replace(source, build=record(version_compatible="yes"))
    with EngineSession(old) as session:
        assert library.lean_runtimes == [str(path)]
        assert library.alive.count("runtime") == 2
        np.testing.assert_array_equal(session.run({"image": pixels(2)})["logits"], expected(pixels(2)))
    assert not library.alive and not cudart.alive


@pytest.mark.parametrize("build", [record("1.7.1.9", version_compatible="yes"), record(), None])
def test_no_other_engine_is(gpu, source, installed, build) -> None:
    installed("1.6.0.2", PACKAGES[0])
    _, library = gpu()
    with EngineSession(replace(source, build=build)):
        assert library.lean_runtimes == []


def test_an_engine_that_it_refuses_leaves_nothing_behind(gpu, source, installed) -> None:
    installed("1.6.0.2", PACKAGES[0])
    cudart, library = gpu()
    library.fault = "deserialize_cuda_engine"
    with (
        pytest.raises(IncompatibleError, match="cannot load model"),
        EngineSession(replace(source, build=record(version_compatible="yes"))),
    ):
        pass
    assert not library.alive and not cudart.alive


def test_one_that_does_not_load_is_the_library_s_own_cause(gpu, source, installed) -> None:
    installed("1.6.0.2", PACKAGES[0])
    cudart, library = gpu()
    library.fault = "load_runtime"
    with (
        pytest.raises(IncompatibleError, match=r"cannot load the lean runtime 1\.6\.0\.2"),
        EngineSession(replace(source, build=record(version_compatible="yes"))),
    ):
        pass
    assert not library.alive and not cudart.alive and library.seen == []


def test_the_machine_s_description_has_it_only_where_it_is_needed(installed, monkeypatch) -> None:
    installed("10.13.3.9", PACKAGES[1])
    module = type(sys)("tensorrt")
    module.__spec__, module.__version__ = object(), "11.4.0.1"
    monkeypatch.setitem(sys.modules, "tensorrt", module)

    def lean(build: BuildRecord) -> str | None:
        variant = Variant(
            name="e", format="tensorrt", precision=Precision.FP16, path="e", batch=BatchRange(1, 1, 1), build=build
        )
        host = preflight.host_of(variant, Device("cuda"))
        assert host.version == "11.4.0.1"
        return host.lean

    assert lean(record("10.13.3.9", version_compatible="yes")) == "10.13.3.9"
    assert lean(record("10.13.3.9")) is None
    assert lean(record("11.4.0.1", version_compatible="yes")) is None
