"""The counts are the published ones, to the last parameter."""

from __future__ import annotations

import pytest

from vggdeploy.model.layers import layers_of, summarise
from vggdeploy.spec import ModelSpec

# torchvision's table of its pre-trained models: parameters exact, GFLOPS (multiply-accumulates) as printed there.
PUBLISHED = {
    "vgg11": (132_863_336, 7.609),
    "vgg11_bn": (132_868_840, 7.609),
    "vgg13": (133_047_848, 11.308),
    "vgg13_bn": (133_053_736, 11.308),
    "vgg16": (138_357_544, 15.470),
    "vgg16_bn": (138_365_992, 15.470),
    "vgg19": (143_667_240, 19.632),
    "vgg19_bn": (143_678_248, 19.632),
}


@pytest.mark.parametrize("arch", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(arch: str) -> None:
    summary = summarise(ModelSpec.named(arch))
    assert (summary.parameters, round(summary.macs / 1e9, 3)) == PUBLISHED[arch]
    assert summary.fp32_bytes == 4 * summary.parameters


@pytest.mark.parametrize("arch", PUBLISHED)
def test_the_table_is_torchvisions_own(arch: str) -> None:
    models = pytest.importorskip("torchvision.models")
    meta = models.get_model_weights(arch).IMAGENET1K_V1.meta
    assert (meta["num_params"], round(meta["_ops"], 3)) == PUBLISHED[arch]


def test_totals_are_the_sums_of_the_rows() -> None:
    summary = summarise(ModelSpec.named("vgg13_bn", width=0.25, in_channels=1, classes=10, image_size=64, hidden=100))
    assert summary.parameters == sum(row.parameters for row in summary.layers)
    assert summary.macs == sum(row.macs for row in summary.layers)


def test_layers_carry_the_papers_names() -> None:
    names = [x.name for x in layers_of(ModelSpec.named("vgg16"))]
    assert names[:5] == ["conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1"]
    assert [n for n in names if n.startswith("conv5")] == ["conv5_1", "conv5_2", "conv5_3"]
    assert names[-7:] == ["fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8"]


def test_the_known_shapes_of_vgg16() -> None:
    shapes = {x.name: x.shape for x in layers_of(ModelSpec.named("vgg16"))}
    assert shapes["conv1_1"] == (64, 224, 224)
    assert shapes["pool3"] == (256, 28, 28)
    assert shapes["pool5"] == (512, 7, 7)
    assert shapes["fc8"] == (1000,)
