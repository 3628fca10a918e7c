"""Whoever wrote the weights, the converted network computes what the original computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from foreign_nets import CLASSES, OTHER, VGG11, TimmVGG, filled, textbook_net, torchvision_net
from torch import Tensor, nn

from vggdeploy.errors import CheckpointError, UsageError
from vggdeploy.model.foreign.convert import convert, fold_pool
from vggdeploy.model.foreign.files import StateFile
from vggdeploy.model.foreign.head import parse_head, settled
from vggdeploy.model.foreign.infer import spec_from_state
from vggdeploy.model.foreign.layouts import recognise
from vggdeploy.model.vgg import VGG, new_vgg
from vggdeploy.model.weights import new_with_state
from vggdeploy.spec import ModelSpec, architecture_names, parse_blocks


def adopted(state: Mapping[str, Tensor], **about: object) -> VGG:
    """Our network, with its spec and weights from nothing but a state dict."""
    head = about.pop("head", None)
    foreign = settled(recognise(StateFile("w.pth", dict(state))), parse_head(str(head)) if head else None)
    spec = spec_from_state(foreign, **about)  # type: ignore[arg-type]
    return new_with_state(spec, convert(foreign, spec).state, where="w.pth")


def distance(model: VGG, original: nn.Module) -> float:
    """max |Δ| of the logits, in units of the largest logit, on noise."""
    spec = model.spec
    x = torch.randn(3, spec.in_channels, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = original(x)
        return float((model(x) - expected).abs().max() / expected.abs().max())


def refused(call: Callable[[], object], kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_torchvisions(batch_norm: bool) -> None:
    net = torchvision_net(batch_norm=batch_norm)
    model = adopted(net.state_dict())
    bn = "_bn" * batch_norm
    assert model.spec == ModelSpec.named(f"vgg11{bn}", width=0.125, classes=CLASSES, hidden=(24, 16))
    assert list(model.state_dict()) == list(net.state_dict())
    assert distance(model, net) < 1e-5


@pytest.mark.parametrize("size", [32, 64, 96, 192, 256])
def test_torchvisions_at_any_size_with_its_adaptive_pool_folded_into_fc6(size: int) -> None:
    net = torchvision_net(batch_norm=True)
    model = adopted(net.state_dict(), image_size=size)
    assert model.spec.image_size == size
    assert distance(model, net) < 1e-5


@pytest.mark.parametrize("size", [None, 32, 64])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_timms_whose_linear_layers_are_convolutions(batch_norm: bool, size: int | None) -> None:
    net = filled(TimmVGG(batch_norm=batch_norm))
    model = adopted(net.state_dict(), image_size=size)
    assert model.spec.hidden == (24, 16)
    assert distance(model, net) < 1e-5


def test_timms_averages_behind_its_relu_on_larger_images_and_that_is_refused() -> None:
    net = TimmVGG()
    assert "was made for images of 224 px, not 256" in refused(lambda: adopted(net.state_dict(), image_size=256))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_the_textbooks_sequential(flat: bool, batch_norm: bool, size: int, channels: int) -> None:
    net = textbook_net(flat=flat, batch_norm=batch_norm, size=size, channels=channels)
    model = adopted(net.state_dict(), image_size=size)
    assert model.spec.in_channels == channels
    assert model.spec.image_size == size
    assert model.spec.width == 0.125
    assert distance(model, net) < 1e-5


def test_a_sequential_of_features_and_classifier() -> None:
    net = torchvision_net()
    both = nn.Sequential(net.features, net.classifier)
    assert distance(adopted(both.state_dict()), net) < 1e-5


def test_a_sequential_has_no_adaptive_pool() -> None:
    net = textbook_net(size=224)
    assert "was made for images of 224 px, not 64" in refused(lambda: adopted(net.state_dict(), image_size=64))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.", "module._orig_mod.model."])
@pytest.mark.parametrize("make", [torchvision_net, textbook_net, lambda: filled(TimmVGG())], ids=["tv", "d2l", "timm"])
def test_a_prefix_is_cut_off_and_said(make: Callable[[], nn.Module], prefix: str) -> None:
    net = make()
    foreign = recognise(StateFile("w", {prefix + k: v for k, v in net.state_dict().items()}))
    spec = spec_from_state(foreign)
    found = convert(foreign, spec)
    assert f"the prefix '{prefix}' was cut off its keys" in found.notes
    assert distance(new_with_state(spec, found.state, where="w"), net) < 1e-5


def test_the_order_of_the_keys_does_not_matter() -> None:
    """safetensors sorts them as text: features.10 before features.2."""
    net = textbook_net(flat=True, batch_norm=True)
    assert distance(adopted(dict(sorted(net.state_dict().items()))), net) < 1e-5


def test_batch_norms_without_a_counter_are_torchvisions_of_2017() -> None:
    net = torchvision_net(batch_norm=True)
    old = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert distance(adopted(old), net) < 1e-5


def test_convolutions_without_bias_have_bias_0_and_that_is_said() -> None:
    net = torchvision_net(batch_norm=True)
    for module in net.features:
        if isinstance(module, nn.Conv2d):
            module.bias = None
    foreign = recognise(StateFile("w", net.state_dict()))
    found = convert(foreign, spec_from_state(foreign))
    assert "its convolutions have no bias; here the biases are 0" in found.notes
    assert distance(adopted(net.state_dict()), net) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32_and_that_is_said(dtype: torch.dtype) -> None:
    net = torchvision_net().to(dtype)
    foreign = recognise(StateFile("w", net.state_dict()))
    assert any("became float32" in note for note in convert(foreign, spec_from_state(foreign)).notes)
    assert distance(adopted(net.state_dict()), net.float()) < 1e-5


def test_networks_that_are_none_of_the_papers_need_their_blocks_and_are_offered_them() -> None:
    for net in (
        torchvision_net(OTHER),
        textbook_net(OTHER, flat=True, channels=3, size=16),
        textbook_net(OTHER, size=16),
    ):
        text = refused(lambda net=net: adopted(net.state_dict()))  # type: ignore[misc]
        assert "--blocks 2x8,1x24,1x24 (as its keys look)" in text
        model = adopted(net.state_dict(), blocks=parse_blocks("2x8,1x24,1x24"))
        assert model.spec.arch == "custom"
        assert distance(model, net) < 1e-5


def test_pools_that_stand_elsewhere_than_the_papers_are_noticed() -> None:
    plan = (8, 16, "M", "M", 32, 32, "M", 64, 64, "M", 64, 64, "M")  # VGG-11's channels
    net = torchvision_net(plan)
    text = refused(lambda: adopted(net.state_dict()))
    assert "more layers between them than ReLUs and single pools" in text
    assert "--arch vgg11" in text
    plan = (8, 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M")
    text = refused(lambda: adopted(textbook_net(plan, flat=True, size=16).state_dict(), arch="vgg11"))
    assert "with the pools elsewhere" in text


def test_dropout_between_the_layers_changes_nothing_once_the_user_says_so() -> None:
    layers: list[nn.Module] = []
    for module in torchvision_net().features:
        layers += [module, nn.Dropout(0.3), nn.Dropout(0.3)] if isinstance(module, nn.ReLU) else [module]
    net = torchvision_net()
    net.features = nn.Sequential(*layers)
    filled(net)
    assert "--arch vgg11" in refused(lambda: adopted(net.state_dict()))
    assert distance(adopted(net.state_dict(), arch="vgg11"), net) < 1e-5


def test_where_the_keys_do_not_tell_the_papers_pools_are_taken_and_that_is_said() -> None:
    net = textbook_net(channels=3)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
    bare = nn.Sequential(*convs, *linears)  # of a program that calls functional.relu and max_pool2d
    foreign = recognise(StateFile("w", bare.state_dict()))
    assert "does not tell whether a ReLU stands between 8 and 9, or between 9 and 10" in refused(
        lambda: settled(foreign)
    )
    foreign = settled(foreign, parse_head("relu,relu,none"))
    spec = spec_from_state(foreign)
    found = convert(foreign, spec)
    assert "its keys do not tell where the pools stand; taken as in vgg11" in found.notes
    assert distance(new_with_state(spec, found.state, where="w"), net) < 1e-5


@pytest.mark.parametrize(
    ("about", "cause"),
    [
        ({"arch": "vgg16"}, "is not vgg16 at any width: 8 convolutions of 8 … 64 channels"),
        ({"arch": "vgg11_bn"}, "has no batch norm, so it is no vgg11_bn"),
        ({"blocks": ((8,), (16,))}, "not (8, 16)"),
        ({"image_size": 16}, "image size 16 does not fit 5 blocks"),
        ({"image_size": 100}, "image size 100 does not fit 5 blocks"),
        ({"arch": "vgg61"}, "did you mean 'vgg1"),
        ({"arch": "vgg11", "blocks": ((8,),)}, "both an architecture and blocks"),
    ],
)
def test_what_the_shapes_deny_is_refused(about: dict[str, object], cause: str) -> None:
    net = torchvision_net()
    with pytest.raises((CheckpointError, UsageError)) as caught:
        adopted(net.state_dict(), **about)
    assert cause in str(caught.value)


def without(state: Mapping[str, Tensor], *keys: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k not in keys}


TV = torchvision_net(batch_norm=True).state_dict()
PLAIN = torchvision_net().state_dict()


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ({"weight": torch.zeros(2, 2)}, "no VGG in a known layout; its keys: weight"),
        ({"layer1.0.conv1.weight": torch.zeros(8, 3, 3, 3)}, "no VGG in a known layout"),
        ({"0.weight": torch.zeros(8, 8), "2.weight": torch.zeros(8, 8)}, "holds no 3×3 convolution"),
        (without(PLAIN, "features.0.bias"), "missing features.0.bias"),
        (without(TV, "features.1.running_var"), "missing features.1.running_var"),
        ({**PLAIN, "loss.weight": torch.ones(3)}, "unexpected loss.weight"),
        ({**PLAIN, "features.0.weight_mask": torch.ones(8, 3, 3, 3)}, "unexpected features.0.weight_mask"),
        ({**PLAIN, "features.3.weight": torch.zeros(16, 9, 3, 3)}, "features.3 takes 9 inputs, and features.0"),
        ({**PLAIN, "features.0.bias": torch.zeros(9)}, "features.0.bias is [9], not [8]"),
        ({**PLAIN, "features.0.weight": torch.zeros(8, 3, 5, 5)}, "vgg"),
        ({**PLAIN, "features.0.weight": torch.zeros(8, 4, 3, 3)}, "4 input channels"),
        ({**PLAIN, "classifier.0.weight": torch.zeros(24, 100)}, "no square map of 64 channels"),
        ({**PLAIN, "classifier.6.bias": torch.tensor([0, 0, 0, 0, torch.nan])}, "classifier.6.bias holds NaN"),
        ({**PLAIN, "classifier.6.bias": torch.tensor([0, 0, 0, 0, torch.inf])}, "classifier.6.bias holds NaN or inf"),
        ({**PLAIN, "classifier.6.bias": torch.zeros(5, dtype=torch.int32)}, "classifier.6.bias is int32"),
        (without(TV, *(f"features.5.{x}" for x in ("weight", "bias", "running_mean", "running_var"))), "not every conv"),
        ({f"a.{k}": v for k, v in PLAIN.items()} | {f"b.{k}": v for k, v in PLAIN.items()}, "holds 2 networks: a., b."),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_weights_that_make_no_vgg_are_refused_with_the_key(state: dict[str, Tensor], cause: str) -> None:
    assert cause in refused(lambda: adopted(state))


def test_batch_norm_behind_the_relu_is_refused_because_it_is_another_function() -> None:
    layers: list[nn.Module] = []
    before = 3
    for width in VGG11:
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(before, int(width), 3, padding=1), nn.ReLU(), nn.BatchNorm2d(int(width))]
            before = int(width)
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    assert "between 0 and its batch norm 2 stands another layer" in refused(lambda: adopted(net.state_dict()))


def test_a_folded_pool_is_exact_and_leaves_a_map_of_7_alone() -> None:
    weight = torch.randn(4, 2 * 49)
    assert fold_pool(weight, 2 * 49, 2) is weight
    maps = torch.randn(3, 2, 5, 5)
    expected = nn.functional.adaptive_avg_pool2d(maps, 7).flatten(1) @ weight.T
    assert torch.allclose(maps.flatten(1) @ fold_pool(weight, 2 * 25, 2).T, expected, atol=1e-5)


@pytest.mark.parametrize("text", ["", "64", "0x64", "1x0", "1x64,", "1x64;2x128", "-1x64", "1x64x3", "1.5x64"])
def test_blocks_that_are_none_are_refused(text: str) -> None:
    assert "for example 1x64,1x128,2x256" in refused(lambda: parse_blocks(text), UsageError)


def test_our_own_weights_tell_their_spec_too() -> None:
    spec = ModelSpec.named("vgg13_bn", width=0.25, in_channels=1, classes=3, image_size=64, hidden=(8, 9))
    model = new_vgg(spec).eval()
    assert adopted(model.state_dict()).spec == spec
    assert distance(adopted(model.state_dict()), model) == 0


@pytest.mark.parametrize("arch", architecture_names())
@pytest.mark.parametrize("width", [1, 0.5, 0.3, 0.125, 2])
def test_every_network_of_the_paper_is_known_by_its_shapes_at_any_width(arch: str, width: float) -> None:
    spec = ModelSpec.named(arch, width=width, classes=7, image_size=96, hidden=8)
    with torch.device("meta"):
        state = VGG(spec).state_dict()
    found = spec_from_state(state)
    assert (found.arch, found.blocks, found.image_size) == (arch, spec.blocks, 96)
    assert found.width == pytest.approx(width, rel=0.01)
