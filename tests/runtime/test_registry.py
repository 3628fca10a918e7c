"""One table names the backends: each of their names is understood wherever one can be given."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import vggdeploy
from vggdeploy.cli.app import run
from vggdeploy.errors import IncompatibleError, MissingDependencyError, UsageError
from vggdeploy.records import Goal
from vggdeploy.runtime.registry import BACKENDS, ENGINES, Backend, get_backend, get_engine, library_title
from vggdeploy.search.trial import SearchTarget

NAMES = [(name, b) for b in BACKENDS for name in (b.name, *b.aliases, b.name.upper(), b.name.replace("-", "_"))]
ENGINE_NAMES = [(name, b) for name, b in NAMES if b in ENGINES]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "grey.png"
    Image.new("L", (32, 32), 128).save(path)
    return path


def test_no_name_means_two_backends() -> None:
    names = [name for backend in BACKENDS for name in (backend.name, *backend.aliases)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("name", "backend"), NAMES)
def test_load_takes_every_name_of_a_backend(name: str, backend: Backend, bundle_dir: Path) -> None:
    try:
        with vggdeploy.load(bundle_dir, backend=name) as engine:
            assert engine.variant.format == backend.format
    except IncompatibleError as error:
        assert f"no variant for {backend.name} " in error.cause


@pytest.mark.parametrize("command", ["predict", "embed", "evaluate", "verify", "bench"])
@pytest.mark.parametrize("name", ["trt", "rtx", "trt-rtx", "TRT_RTX"])
def test_the_commands_option_backend_takes_the_names_of_the_option_engine(
    command: str, name: str, bundle_dir: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"predict": [str(image)], "embed": [str(image), "-o", str(tmp_path / "v.npy")]}.get(command, [])
    code = run([command, str(bundle_dir), *more, "--backend", name])
    shown = capsys.readouterr().err
    assert code != 0
    assert "is unknown" not in shown
    assert f"{get_engine(name).name}" in shown


@pytest.mark.parametrize(("name", "engine"), ENGINE_NAMES)
def test_build_and_search_take_every_name_of_an_engine(
    name: str, engine: Backend, bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["build", str(bundle_dir), "--engine", name, "--target", "sm1"]) == 2
    wanted = "GPU target 'sm1' is unknown" if "cpu" in engine.builds_on else f"{engine.name} builds for the GPU"
    assert wanted in capsys.readouterr().err
    try:
        assert SearchTarget.parse(Goal(accuracy_drop=0.01, target=name)).engine is engine
    except MissingDependencyError as error:  # TensorRT is installed where its GPU is
        assert f"to build {engine.name} engines" in error.cause


def test_a_backend_that_builds_nothing_is_no_engine() -> None:
    assert get_backend("ort").builds_on == ()
    with pytest.raises(UsageError, match="engine 'ort' is unknown"):
        get_engine("ort")


def test_the_title_of_a_library_is_its_makers() -> None:
    assert library_title("tensorrt_rtx") == "TensorRT for RTX"
    assert library_title("another") == "another"
