"""Engines on a machine without a driver, with the real library: TensorRT's lean runtime, whose wheels are on PyPI.

Given an engine there it ends the process with SIGSEGV, and so it does when its runtime is freed. Whatever way a user takes to
one, vggdeploy has to answer before.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from golden import tensorrt_api

from vggdeploy.bundle import BuildRecord, Bundle, Variant, update_bundle
from vggdeploy.errors import IncompatibleError
from vggdeploy.runtime.gpu.cuda import check_driver
from vggdeploy.types import BatchRange, Precision

pytestmark = pytest.mark.late
PINS = tensorrt_api.HERE / "tensorrt_lean.txt"
NAME = "tensorrt-fp16-sm89"
# `import tensorrt` is the lean runtime there: the two have one interface, and this one installs without NVIDIA's index.
MODULE = """
import tensorrt_lean_libs
from tensorrt_lean_bindings import *
from tensorrt_lean_bindings import __version__
"""
HEAD = """
import sys, tensorrt
from pathlib import Path
sys.path.insert(0, {tests!r})
path = Path({path!r})
"""


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for ``PYTHONPATH`` with the real library in it."""
    try:
        check_driver()
    except IncompatibleError:
        pass
    else:
        pytest.skip("this is about machines without an NVIDIA driver")
    home = tmp_path_factory.mktemp("lean")
    if not tensorrt_api.fetch(PINS.read_text(), home):
        pytest.skip("the lean runtime has no wheel for this Python or machine")
    (home / "tensorrt").mkdir()
    (home / "tensorrt" / "__init__.py").write_text(MODULE)
    return home


@pytest.fixture(scope="module")
def planted(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine of that release, as far as its record and its first bytes say."""
    import shutil

    root = tmp_path_factory.mktemp("planted") / "bundle"
    shutil.copytree(bundle_dir, root)
    bundle = Bundle.open(root)
    record = BuildRecord(
        library="tensorrt", version="11.4.0.106", source="variants/onnx-fp16/model.onnx", source_sha256="0" * 64,
        targets=("sm89",), options={"precision": "fp16"}, seconds=1.0, gpu="NVIDIA L4", driver="13.0",
    )  # fmt: skip
    path = f"variants/{NAME}/model.engine"
    engine = Variant(
        name=NAME, format="tensorrt", precision=Precision.FP16, path=path, batch=BatchRange(1, 2, 4), build=record
    )
    with update_bundle(bundle) as draft:
        draft.write(path, b"ftrt" + bytes(4092))
        draft.manifest = bundle.manifest.with_variants(engine)
    return root


def child(lean: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(lean), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def code(lean: Path, tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    head = HEAD.format(tests=str(Path(__file__).parents[1]), path=str(tmp_path / "model.engine"))
    return child(lean, "-c", head + textwrap.dedent(text))


@pytest.mark.parametrize("use", ["runtime.deserialize_cuda_engine(b'ftrt' + bytes(4092))", "del runtime"])
def test_the_library_itself_ends_the_process(lean: Path, tmp_path: Path, use: str) -> None:
    """What all below protects from. A release in which this no longer holds needs less of it."""
    done = code(
        lean,
        tmp_path,
        f"""
        class Log(tensorrt.ILogger):
            def __init__(self): tensorrt.ILogger.__init__(self)
            def log(self, severity, text): pass
        log = Log()
        runtime = tensorrt.Runtime(log)
        {use}
        """,
    )
    assert done.returncode == -signal.SIGSEGV, done


@pytest.mark.parametrize("way", ["session", "loaded", "inspector"])
def test_no_way_into_the_library_ends_the_process(lean: Path, tmp_path: Path, way: str) -> None:
    """A session asks CUDA for the GPU first; what it calls, called without that, asks whether the runtime has started."""
    done = code(
        lean,
        tmp_path,
        f"""
        from fakes.sessions import source_at
        from vggdeploy.build.readback import inspect_engine
        from vggdeploy.errors import VggdeployError
        from vggdeploy.runtime.tensorrt.engine import LoadedEngine
        from vggdeploy.runtime.tensorrt.session import EngineSession
        from vggdeploy.system.sealed import HashedFile
        source = source_at(path)
        try:
            if {way!r} == "session":
                EngineSession(source).__enter__()
            elif {way!r} == "loaded":
                with source.open() as file:
                    LoadedEngine(tensorrt, source).load(file)
            else:
                inspect_engine(tensorrt, HashedFile.of(path))
        except VggdeployError as error:
            print(error)
        """,
    )
    assert done.returncode == 0, done
    [said] = done.stdout.splitlines()
    assert "CUDA driver version is insufficient" in said or "CUDA initialization failure with error: 35" in said


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "BUNDLE", "IMAGE", "--variant", NAME),
        ("predict", "BUNDLE", "IMAGE", "--backend", "tensorrt"),
        ("predict", "BUNDLE", "IMAGE", "--backend", "tensorrt", "--rebuild"),
        ("bench", "BUNDLE", "--variant", NAME),
        ("verify", "BUNDLE", "--variant", NAME),
        ("build", "BUNDLE", "--engine", "tensorrt"),
    ],
    ids=" ".join,
)
def test_every_command_says_that_there_is_no_driver_and_exits_with_5(
    lean: Path, planted: Path, digit_png: Path, words: tuple[str, ...]
) -> None:
    places = {"BUNDLE": planted, "IMAGE": digit_png}
    done = child(lean, "-m", "vggdeploy", *(places.get(word, word) for word in words))
    assert done.returncode == 5, done
    said = " ".join((done.stdout + done.stderr).split())
    assert "there is no NVIDIA driver here" in said and "Traceback" not in said


def test_the_commands_that_need_no_engine_go_on(lean: Path, planted: Path, digit_png: Path) -> None:
    assert NAME in child(lean, "-m", "vggdeploy", "inspect", planted).stdout
    predicted = child(lean, "-m", "vggdeploy", "predict", planted, digit_png)
    assert (predicted.returncode, digit_png.stem in predicted.stdout) == (0, True), predicted
    doctor = child(lean, "-m", "vggdeploy", "doctor")
    assert doctor.returncode == 0 and "11.4.0.106" in doctor.stdout, doctor
