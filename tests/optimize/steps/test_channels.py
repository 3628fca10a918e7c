"""The widths that are chosen keep the target and the floor, and cost where it costs least."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggdeploy.errors import TargetError, UsageError
from vggdeploy.model.layers import summarise
from vggdeploy.optimize.steps.widths import allocate, macs_of, share_of, step_of, widths_of, with_widths
from vggdeploy.spec import CUSTOM, ModelSpec

VGG11 = ModelSpec.named("vgg11_bn", width=0.5, image_size=64, in_channels=1, classes=10, hidden=512)
EVEN = {name: {max(1, width // 2): 1.0, max(1, width // 8): 4.0} for name, width in widths_of(VGG11).items()}


@given(
    st.floats(0.05, 1),
    st.lists(st.floats(0, 3), min_size=20, max_size=20),
    st.sampled_from([(0, 0), (100, 0), (64, 48)]),
)
@settings(max_examples=10)
def test_the_target_and_the_floor_hold(keep: float, rises: list[float], ranks: tuple[int, int]) -> None:
    spec = msgspec.structs.replace(VGG11, ranks=ranks)
    own = widths_of(spec)
    curves = {n: {w // 2: rises[i], w // 8: rises[i + 10]} for i, (n, w) in enumerate(own.items())}
    try:
        widths = allocate(spec, curves, keep, floor=0.2)
    except TargetError:
        assert keep < 0.2  # the channels of two layers multiply: below the floor alone there is no way
        return
    assert macs_of(with_widths(spec, widths)) <= keep * macs_of(spec)
    assert all(round(0.2 * own[name]) <= width <= own[name] for name, width in widths.items())


def test_the_layer_that_is_the_most_sensitive_keeps_the_most() -> None:
    curves = {**EVEN, "conv3_2": {width: 50 * rise for width, rise in EVEN["conv3_2"].items()}}
    own = widths_of(VGG11)
    widths = allocate(VGG11, curves, 0.4)
    assert widths["conv3_2"] == own["conv3_2"]
    assert widths["conv3_1"] < own["conv3_1"]


def test_a_layer_that_is_not_missed_goes_to_its_floor() -> None:
    curves = {**EVEN, "conv4_1": dict.fromkeys(EVEN["conv4_1"], -0.1)}  # the loss even falls
    assert allocate(VGG11, curves, 0.6)["conv4_1"] == 32  # a tenth of 256, in whole vectors


def test_keeping_all_changes_nothing() -> None:
    assert allocate(VGG11, EVEN, 1.0) == widths_of(VGG11)
    assert with_widths(VGG11, widths_of(VGG11)) == VGG11


def test_other_widths_make_a_custom_network_whose_counts_follow() -> None:
    spec = with_widths(VGG11, {"conv1_1": 20, "fc7": 100})
    assert (spec.arch, spec.width, spec.blocks[0], spec.hidden) == (CUSTOM, 1.0, (20,), (512, 100))
    assert macs_of(spec) == summarise(spec).macs
    assert with_widths(VGG11, {"fc6": 100}).arch == "vgg11_bn"  # its blocks are still those


@pytest.mark.parametrize(("width", "step"), [(8, 1), (16, 1), (32, 2), (64, 16), (128, 16), (256, 16), (512, 32)])
def test_wide_layers_lose_channels_in_whole_vectors(width: int, step: int) -> None:
    assert step_of(width) == step


@given(st.integers(1, 4096), st.floats(0.01, 1))
def test_a_share_of_a_wide_layer_fills_vectors_and_is_no_less_than_asked(width: int, share: float) -> None:
    channels = share_of(width, share)
    assert 1 <= channels <= width
    assert channels >= round(share * width)
    assert channels - share * width < 16.5
    assert width < 64 or channels in {width, channels // 16 * 16}


def test_widths_of_wide_layers_are_whole_vectors_also_where_they_were_not() -> None:
    spec = with_widths(VGG11, {"conv3_1": 100, "fc6": 500})
    curves = {name: {max(1, width // 8): 1.0} for name, width in widths_of(spec).items()}
    widths = allocate(spec, curves, 0.2)
    own = widths_of(spec)
    assert any(width != own[name] for name, width in widths.items())
    assert all(width % 16 == 0 for name, width in widths.items() if own[name] >= 64 and width != own[name])


@pytest.mark.parametrize("keep", [0, -0.5, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(keep: float) -> None:
    with pytest.raises(UsageError, match="give a number above 0, at most 1"):
        allocate(VGG11, EVEN, keep)


def test_a_target_below_the_floor_names_what_can_be_had() -> None:
    with pytest.raises(TargetError, match=r"still has .*%.*, not 1\.0% — keep more: --keep 0\.") as caught:
        allocate(VGG11, EVEN, 0.01)
    offered = float(str(caught.value).rsplit(" ", 1)[1])
    assert macs_of(with_widths(VGG11, allocate(VGG11, EVEN, offered))) <= offered * macs_of(VGG11)
