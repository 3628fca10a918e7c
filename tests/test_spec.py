"""A spec is data: it survives JSON, and what makes no network is refused with what to do."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggdeploy.errors import UsageError
from vggdeploy.spec import (
    ARCHITECTURES,
    CUSTOM,
    ModelSpec,
    PreprocessSpec,
    architecture_names,
    scaled_blocks,
    split_arch,
)

blocks = st.lists(
    st.lists(st.integers(1, 512), min_size=1, max_size=4).map(tuple), min_size=1, max_size=5
).map(tuple)  # fmt: skip


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Any network, named or of any blocks."""
    common = {
        "in_channels": draw(st.sampled_from([1, 3])),
        "classes": draw(st.integers(2, 1000)),
        "dropout": draw(st.floats(0, 1, exclude_max=True)),
    }
    factor, width = draw(st.integers(1, 8)), draw(st.integers(1, 4096))
    if draw(st.booleans()):
        arch = draw(st.sampled_from(architecture_names()))
        ratio = draw(st.floats(0.01, 2))
        return ModelSpec.named(arch, width=ratio, image_size=32 * factor, hidden=width, **common)
    found = draw(blocks)
    return ModelSpec(
        arch=CUSTOM, blocks=found, batch_norm=draw(st.booleans()), image_size=factor * 2 ** len(found),
        hidden=(width, draw(st.integers(1, 4096))), **common,
    )  # fmt: skip


@given(specs())
@settings(max_examples=200, deadline=None)
def test_a_spec_survives_json(spec: ModelSpec) -> None:
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ModelSpec) == spec


@given(specs())
@settings(max_examples=100, deadline=None)
def test_fc6_takes_what_the_last_pool_gives(spec: ModelSpec) -> None:
    side = spec.image_size
    for _ in spec.blocks:
        side //= 2
    assert spec.flat_features == spec.blocks[-1][-1] * side * side


@pytest.mark.parametrize("arch", architecture_names())
def test_the_name_counts_the_layers_with_weights(arch: str) -> None:
    spec = ModelSpec.named(arch)
    assert sum(map(len, spec.blocks)) + 3 == int(arch.removeprefix("vgg").removesuffix("_bn"))
    assert spec.batch_norm == arch.endswith("_bn")


@pytest.mark.parametrize("spelling", ["VGG16-BN", "vgg16bn", " Vgg 16 bn ", "vgg_16_bn"])
def test_usual_spellings_of_a_name_are_understood(spelling: str) -> None:
    assert ModelSpec.named(spelling).arch == "vgg16_bn"
    assert split_arch(spelling) == ("vgg16", True)


@pytest.mark.parametrize(("wrong", "meant"), [("vgg166", "vgg16"), ("vg11_bn", "vgg11_bn"), ("vgg13_b", "vgg13_bn")])
def test_a_misspelt_name_gets_the_closest(wrong: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
        ModelSpec.named(wrong)


def test_quarter_width_divides_every_channel_by_four() -> None:
    whole, quarter = ModelSpec.named("vgg19"), ModelSpec.named("vgg19", width=0.25)
    assert quarter.blocks == tuple(tuple(c // 4 for c in block) for block in whole.blocks)
    assert quarter.hidden == whole.hidden


def test_no_width_leaves_a_convolution_without_channels() -> None:
    assert scaled_blocks(ARCHITECTURES["vgg11"], 1 / 64) == ((1,), (2,), (4, 4), (8, 8), (8, 8))
    with pytest.raises(UsageError, match="without channels") as caught:
        scaled_blocks(ARCHITECTURES["vgg11"], 1e-9)
    assert "at least 0.015625" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"image_size": 31}, "image size 31"),
        ({"image_size": 0}, "image size 0"),
        ({"image_size": -32}, "image size -32"),
        ({"image_size": 100}, r"give a multiple of 32, at least 32 \(for example 96\)"),
        ({"in_channels": 2}, "2 input channels"),
        ({"classes": 1}, "1 classes"),
        ({"hidden": 0}, "hidden width"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"dropout": float("nan")}, "dropout nan"),
        ({"width": 0.0}, "width ratio is 0.0"),
        ({"width": -1.0}, "width ratio is -1.0"),
        ({"width": float("nan")}, "width ratio is nan"),
        ({"width": float("inf")}, "width ratio is inf"),
    ],
)
def test_what_makes_no_network_is_refused(change: dict[str, float], cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        ModelSpec.named("vgg11", **change)  # type: ignore[arg-type]


def test_blocks_that_are_not_the_names_are_refused() -> None:
    with pytest.raises(UsageError, match="not those of vgg11 at width 1"):
        ModelSpec(arch="vgg11", blocks=((8,), (8,)))


@pytest.mark.parametrize("empty", [(), ((),), ((8,), ())])
def test_a_block_without_a_convolution_is_refused(empty: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(UsageError, match="at least one convolution"):
        ModelSpec(arch=CUSTOM, blocks=empty, image_size=32)


def test_a_misspelt_field_is_refused() -> None:
    document = msgspec.json.encode(ModelSpec.named("vgg11")).replace(b'"classes"', b'"clases"')
    with pytest.raises(msgspec.ValidationError, match="clases"):
        msgspec.json.decode(document, type=ModelSpec)


@given(mean=st.floats(-2, 2), std=st.floats(0.01, 2), pixel=st.integers(0, 255))
def test_scale_and_shift_are_the_usual_normalisation(mean: float, std: float, pixel: int) -> None:
    spec = PreprocessSpec(mode="L", mean=(mean,), std=(std,))
    assert pixel * spec.scale[0] + spec.shift[0] == pytest.approx((pixel / 255 - mean) / std, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"mode": "CMYK"}, "image mode is 'CMYK'"),
        ({"interpolation": "bilinaer"}, "did you mean 'bilinear'"),
        ({"resize": 20, "crop": 32}, "crop 32 does not fit resize 20"),
        ({"crop": 0}, "crop 0"),
        ({"mean": (0.5,)}, "mean/std of 1/3 channels"),
        ({"std": (0.5, 0.0, 0.5)}, "cannot normalise"),
        ({"mean": (0.5, float("nan"), 0.5)}, "cannot normalise"),
    ],
)
def test_preprocessing_that_cannot_work_is_refused(change: dict[str, object], cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        PreprocessSpec(**change)  # type: ignore[arg-type]
