"""Every error says what is wrong and what to do, and ends a command with the code that is written down."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

import vggdeploy.errors as module
from vggdeploy.errors import UntoldError, UsageError, VggdeployError, unknown_name

CLASSES = [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, VggdeployError)]
CODES = {
    "VggdeployError": 1, "UsageError": 2, "InputError": 1, "DataError": 1, "CheckpointError": 1, "TrainingError": 1,
    "BundleError": 1, "ForeignModelError": 1, "UntoldError": 1,
    "IntegrityError": 1, "BuildError": 1, "ParityError": 3, "TargetError": 4, "IncompatibleError": 5,
    "MissingDependencyError": 5, "CudaError": 1, "GpuMemoryError": 1, "Overloaded": 1, "DeadlineError": 1,
    "SignatureError": 1,
}  # fmt: skip


def test_the_exit_codes_are_those_of_the_design() -> None:
    assert {kind.__name__: kind.exit_code for kind in CLASSES} == CODES
    assert module.EXIT_INTERRUPTED == 130


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    text = Path(module.__file__).read_text()
    drawn = dict(re.findall(r"^[ │├└─]*(\w+Error|Overloaded) +(\d)", text.split('"""')[1], re.MULTILINE))
    assert {name: int(code) for name, code in drawn.items()} == CODES


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_prints_cause_and_remedy_on_one_line(kind: type[VggdeployError]) -> None:
    assert str(kind("it broke", "mend it")) == "it broke — mend it"
    assert str(kind("it broke")) == "it broke"


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_the_way_between_processes(kind: type[VggdeployError]) -> None:
    error = pickle.loads(pickle.dumps(kind("it broke", "mend it")))  # noqa: S301  # ours
    assert (type(error), error.cause, error.hint) == (kind, "it broke", "mend it")


def test_what_an_option_would_tell_survives_it_too() -> None:
    error = pickle.loads(pickle.dumps(UntoldError("not told", "say it", "--blocks 1x8")))  # noqa: S301  # ours
    assert (error.cause, error.hint, error.option) == ("not told", "say it", "--blocks 1x8")


def test_a_typo_gets_the_closest_name_and_the_list() -> None:
    error = unknown_name("variant", "onnx-fp61", ["onnx-fp32", "onnx-fp16", "torch-fp32"])
    assert isinstance(error, UsageError)
    assert error.cause == "the variant 'onnx-fp61' is unknown"
    assert error.hint == "did you mean 'onnx-fp16'? known: onnx-fp16, onnx-fp32, torch-fp32"


def test_a_name_like_none_gets_the_list_alone() -> None:
    assert unknown_name("variant", "zzz", ["b", "a"]).hint == "known: a, b"
    assert unknown_name("variant", "x", []).hint == "known: none"
