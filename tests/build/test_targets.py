"""GPU targets: names in, compute capabilities out; the list is the library's, not ours."""

from __future__ import annotations

import pytest

from vggdeploy.build.targets import DEFAULT_TARGETS, GENERATIONS, resolve_targets
from vggdeploy.errors import UsageError
from vggdeploy.runtime.tensorrt.rtx import known_targets


def test_the_known_targets_are_the_library_s_own(library):
    members = library.ComputeCapability.__members__
    assert known_targets(library) == tuple(
        sorted((n.lower() for n in members if n[2:].isdigit()), key=lambda n: int(n[2:]))
    )
    assert {"sm75", "sm80", "sm86", "sm89", "sm120", "sm121"} <= set(known_targets(library))


def test_the_default_is_ampere_ada_and_blackwell(library):
    assert resolve_targets(library, DEFAULT_TARGETS) == ("sm80", "sm86", "sm89", "sm120", "sm121")


@pytest.mark.parametrize(
    ("names", "targets"),
    [
        (("ada",), ("sm89",)),
        (("TURING", "sm75"), ("sm75",)),
        (("sm120", "sm_89", "8.6"), ("sm86", "sm89", "sm120")),
        (("compute_89", " Ada "), ("sm89",)),
        (("89", "A100"), ("sm80", "sm89")),
    ],
)
def test_habits_of_writing_them_are_understood_and_equal_sets_are_equal(library, names, targets):
    assert resolve_targets(library, names) == targets
    assert resolve_targets(library, tuple(reversed(names))) == targets


@pytest.mark.parametrize("name", ["adda", "sm98", "rtx", "sm8 9", "", "sm", "ada,ampere"])
def test_an_unknown_target_is_refused_with_the_known_list(library, name):
    with pytest.raises(UsageError, match=r"the GPU target '.*' is unknown") as caught:
        resolve_targets(library, ["ada", name])
    assert caught.value.exit_code == 2
    assert "sm89" in caught.value.hint and "ampere" in caught.value.hint
    assert "hopper" not in caught.value.hint


def test_a_typo_gets_the_closest_name(library):
    with pytest.raises(UsageError, match="did you mean 'blackwell'"):
        resolve_targets(library, ["blakwell"])


@pytest.mark.parametrize("name", ["sm90", "h100", "H200", "hopper", "9.0", "sm100", "b200", "sm87"])
def test_a_gpu_that_only_tensorrt_serves_is_answered_with_the_way_there(library, name):
    with pytest.raises(UsageError, match=f"TensorRT for RTX .* does not support '{name}'") as caught:
        resolve_targets(library, [name])
    assert "--engine tensorrt" in caught.value.hint


def test_no_target_at_all_is_refused(library):
    with pytest.raises(UsageError, match="no GPU target"):
        resolve_targets(library, [])


def test_every_target_of_the_library_has_a_generation(library):
    named = {target for group in GENERATIONS.values() for target in group}
    assert set(known_targets(library)) <= named
