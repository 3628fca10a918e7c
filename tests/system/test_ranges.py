"""NVTX ranges: free when they are off, and around decode, stage, enqueue and results when they are on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vggdeploy.errors import MissingDependencyError
from vggdeploy.preprocess import prepare_batch
from vggdeploy.runtime.gpu.lane import Lane
from vggdeploy.system import ranges
from vggdeploy.system.optional import installed

# The package's `annotate`, which writes down what is opened and closed.
STAND_IN = """
from contextlib import contextmanager
seen = []
@contextmanager
def annotate(message, *, domain):
    seen.append((domain, "open", message))
    try:
        yield
    finally:
        seen.append((domain, "close", message))
"""
# A batch from pictures to answers through a session of a TensorRT engine, on the fake GPU.
PROGRAM = """
import json, sys
import numpy as np
from pathlib import Path
from fakes.gpu import CLASSES, Cudart, H, Library, W, C, pixels
from vggdeploy.preprocess import prepare_batch
from vggdeploy.runtime.base import Source
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.tensorrt import session as backend
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import BatchRange, Device, TensorSpec

path = Path(sys.argv[1]) / "model.engine"
path.write_bytes(b"engine")
cudart, library = Cudart(), Library()
library.cudart = cudart
made = []
library.made = made
cuda.bindings = lambda: cudart
backend.backend_library = lambda *a, **k: library
source = Source(
    file=HashedFile.of(path), spec=ModelSpec.named("vgg11", image_size=32), preprocess=PreprocessSpec(),
    inputs=(TensorSpec("image", "uint8", ("N", H, W, C)),), outputs=(TensorSpec("logits", "float32", ("N", CLASSES)),),
    batch=BatchRange(1, 2, 4), device=Device("cuda"),
)
batch = prepare_batch([np.zeros((8, 8, 3), np.uint8)] * 2, PreprocessSpec(resize=H, crop=H))
with backend.EngineSession(source) as session:
    with session.lane() as lane:
        verbosity = lane.look(2, lambda context: context.nvtx_verbosity.name)
    session.run({"image": batch})
import nvtx
print(json.dumps({"seen": nvtx.seen, "verbosity": verbosity}))
"""


def run_program(tmp_path: Path, asked: str) -> dict[str, object]:
    (tmp_path / "nvtx.py").write_text(STAND_IN)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths, ranges.VARIABLE: asked}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_every_stretch_of_a_batch_is_a_range_and_tensorrt_names_its_own(tmp_path: Path) -> None:
    found = run_program(tmp_path, "1")
    assert found["seen"] == [
        ["vggdeploy", what, name] for name in ("decode", "stage", "enqueue", "results") for what in ("open", "close")
    ]
    assert found["verbosity"] == "DETAILED"


def test_without_the_variable_nothing_is_opened_and_tensorrt_names_nothing(tmp_path: Path) -> None:
    assert run_program(tmp_path, "0") == {"seen": [], "verbosity": "NONE"}


def test_what_is_off_is_the_function_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def function() -> int:
        return 1

    for value in ("0", ""):
        monkeypatch.setenv(ranges.VARIABLE, value)
        assert ranges.ranged("x")(function) is function
    for each in (prepare_batch, Lane.stage, Lane.enqueue, Lane.results):
        assert not hasattr(each, "__wrapped__")


def test_a_package_that_is_missing_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ranges.VARIABLE, "1")
    monkeypatch.setattr("vggdeploy.system.optional.installed", lambda module: False)
    ranges._nvtx.cache_clear()
    marked = ranges.ranged("x")(lambda: 1)
    with pytest.raises(MissingDependencyError, match="nvtx") as caught:
        marked()
    assert "vggdeploy[nvtx]" in caught.value.hint


@pytest.mark.skipif(not installed("nvtx"), reason="needs the package nvtx: pip install 'vggdeploy[nvtx]'")
def test_the_real_package_takes_our_ranges_and_lets_answers_and_errors_through(monkeypatch: pytest.MonkeyPatch) -> None:
    import nvtx

    monkeypatch.setenv(ranges.VARIABLE, "1")
    ranges._nvtx.cache_clear()
    assert ranges.ranged("x")(lambda value: value + 1)(1) == 2
    assert nvtx.get_domain(ranges.DOMAIN) is nvtx.get_domain(ranges.DOMAIN)
    with pytest.raises(ZeroDivisionError):
        ranges.ranged("x")(lambda: 1 / 0)()
