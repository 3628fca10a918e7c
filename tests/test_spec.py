"""A spec is data: it survives JSON, and what makes no network is refused with what to do."""

from __future__ import annotations

import re

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
@settings(max_examples=200)
def test_a_spec_survives_json(spec: ModelSpec) -> None:
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ModelSpec) == spec


@given(specs())
@settings(max_examples=100)
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


@given(mean=st.floats(0, 1), std=st.floats(1 / 255, 1), pixel=st.integers(0, 255))
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


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("mean", "std", "told", "remedy"),
    [
        ((76,), (80,), "0.298 and 0.314", "--mean 0.29804 --std 0.31373; or --mean 0 --std 1"),
        ((76,) * 3, (80,) * 3, "0.298 and 0.314", "--mean 0.29804 --std 0.31373;"),
        (
            (123.675, 116.28, 103.53),
            (58.395, 57.12, 57.375),
            "0.485,0.456,0.406 and 0.229,0.224,0.225",
            "--mean 0.485,",
        ),
        ((123.68, 116.779, 103.939), (1, 1, 1), "0.485,0.458,0.408 and 0.00392", "--std 0.0039216;"),
        (IMAGENET[0], (58.395, 57.12, 57.375), "0.485,0.456,0.406 and 0.229,0.224,0.225", "--std 0.229,0.224,0.225;"),
        ((123.675, 116.28, 103.53), IMAGENET[1], "0.485,0.456,0.406 and 0.229,0.224,0.225", "--mean 0.485,"),
        ((127.5,), (127.5,), "0.5 and 0.5", "--mean 0.5 --std 0.5;"),
        ((0.0019, 0.0018, 0.0016), (0.0009, 0.0009, 0.0009), "0.484,0.459,0.408 and 0.229", "--std 0.2295;"),
        ((-0.5,), (0.5,), "mean -0.5 and std 0.5 are not those of pixels from 0 to 1", "a mean from 0 to 1"),
        ((300,), (700,), "mean 300 and std 700 are not those of pixels from 0 to 1", "a std from 1/255 to 1"),
    ],
)
def test_mean_and_std_of_other_units_are_refused_and_divided(
    mean: tuple[float, ...], std: tuple[float, ...], told: str, remedy: str
) -> None:
    with pytest.raises(UsageError) as caught:
        PreprocessSpec(mode="L" if len(mean) == 1 else "RGB", mean=mean, std=std)
    assert told in caught.value.cause
    assert remedy in caught.value.hint
    assert "--mean 0 --std 1 for weights that were trained with ToTensor alone" in caught.value.hint


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.0,), (1.0,)),  # ToTensor alone
        ((0.5,), (0.5,)),  # to −1 … 1
        ((0.0,), (1 / 255,)),  # pixels as they are
        ((0.0,), (0.0039,)),  # the same, rounded
        ((0.485, 0.458, 0.408), (1 / 255,) * 3),  # Caffe: only the mean taken off
        ((0.1307,), (0.3081,)),  # MNIST
        ((1.0,), (0.02,)),
        IMAGENET,
    ],
)
def test_every_normalisation_that_is_in_use_is_accepted(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    PreprocessSpec(mode="L" if len(mean) == 1 else "RGB", mean=mean, std=std)


@given(mean=st.floats(0, 1), std=st.floats(0.02, 0.5))
def test_what_is_right_in_units_of_1_is_refused_in_those_of_255_and_named(mean: float, std: float) -> None:
    spec = PreprocessSpec(mode="L", mean=(mean,), std=(std,))
    with pytest.raises(UsageError) as caught:
        PreprocessSpec(mode="L", mean=(spec.mean[0] * 255,), std=(spec.std[0] * 255,))
    named = re.search(r"--mean (\S+) --std ([^;\s]+);", caught.value.hint)
    assert named is not None
    assert float(named[2]) == pytest.approx(std, rel=1e-4)
    # A mean of at most 1/255 is one in either unit.
    assert float(named[1]) == pytest.approx(mean if mean * 255 > 1 else mean * 255, rel=1e-4, abs=1e-6)
