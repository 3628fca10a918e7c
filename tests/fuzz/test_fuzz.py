"""No input from anywhere crashes, hangs, takes the memory or ends in a traceback: it is refused in one line, or it is harmless.

The inputs are the same in every run. `benchmarks/fuzz.py` tries as many more as it is told.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fuzz import guided, runner
from fuzz.binaries import FaultTarget, PuzzleTarget
from fuzz.seeds import prepare
from fuzz.targets import LIBRARIES, OURS, TARGETS
from vggdeploy.system.optional import installed

# Cheap parsers get more: together four minutes of two cores, most of which is the time of good inputs.
INPUTS = {
    "policy": 3000, "array": 3000, "image": 4000, "recipe": 3000, "engine": 2500, "search": 2000, "report": 1000,
    "manifest": 600, "checkpoint": 800, "signature": 600, "key": 600, "weights": 900, "engine-file": 60,
}  # fmt: skip
OF_LIBRARIES = {"onnx": 120, "torchscript": 120, "safetensors": 600}


@pytest.fixture(scope="module")
def home(checkpoint: Path, bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("fuzz") / "home", checkpoint, bundle_dir)


def counted(home: Path, inputs: dict[str, int]) -> list[runner.Count]:
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda name: runner.count(home, name, inputs[name], limit=30), inputs))


@pytest.mark.late
def test_what_we_parse_ourselves_is_refused_or_harmless(home: Path) -> None:
    assert INPUTS.keys() == OURS.keys()
    found = counted(home, INPUTS)
    assert sum(count.outcomes.total() for count in found) >= 20_000
    assert {c.target: c.failures for c in found if c.failed} == {}
    # Mutations reach what stands behind the first check.
    assert [c.target for c in found if not c.outcomes["accepted"]] in ([], ["engine-file"])  # that one needs a GPU


@pytest.mark.late
def test_what_goes_on_to_a_library_is_refused_or_harmless(home: Path) -> None:
    assert OF_LIBRARIES.keys() == LIBRARIES.keys()
    found = counted(home, OF_LIBRARIES)
    assert {c.target: c.failures for c in found if c.failed} == {}


@pytest.mark.late
def test_the_runner_tells_every_harm_and_whose_it_is(home: Path) -> None:
    held = bytearray(2**30)  # a peak of ours is no input's, and hides none
    found = runner.count(home, FaultTarget.name, len(FaultTarget.harms), limit=20)
    assert found.outcomes == {"refused": 1, "accepted": 2, "crash": 2, "hang": 1, "traceback": 1, "memory": 2}
    assert [(number, kind) for number, kind, _ in found.failures] == [
        (number, kind) for number, kind in enumerate(FaultTarget.harms) if kind in runner.FAILURES
    ]
    assert len(held) == 2**30
    texts = {number: text for number, _, text in found.failures}
    assert "SIGABRT" in texts[2]
    assert "exit 3" in texts[7]
    assert "KeyError" in texts[4]


@pytest.mark.late
@pytest.mark.skipif(not installed("atheris"), reason="no Atheris for this Python or machine")
def test_no_input_that_coverage_chooses_does_harm_either(home: Path) -> None:
    """Ten seconds of each of the parsers whose inputs cost least. `benchmarks/fuzz.py --guided` has minutes of all."""
    names = ["weights", "array", "policy", "recipe", "engine", "key"]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        found = list(pool.map(lambda name: guided.search(home, name, 10), names))
    assert [one for one in found if one.failure] == []
    assert min(one.runs for one in found) > 100


@pytest.mark.late
@pytest.mark.skipif(not installed("atheris"), reason="no Atheris for this Python or machine")
def test_coverage_finds_the_way_to_a_planted_fault(home: Path) -> None:
    found = guided.search(home, PuzzleTarget.name, 60)
    assert "KeyError" in found.failure
    assert Path(found.input).read_bytes().startswith(PuzzleTarget.answer)


def test_the_same_number_is_the_same_input(tmp_path: Path) -> None:
    target = TARGETS["policy"](tmp_path)
    assert [target.input(n, 0) for n in range(50)] == [target.input(n, 0) for n in range(50)]
    assert target.input(40, 0) != target.input(40, 1)
