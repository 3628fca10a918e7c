"""Heads that others put behind a VGG: any number of linear layers, pooled, appended, or none; and what nobody can know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest
import torch
from foreign_nets import (
    CLASSES,
    Appended,
    Functional,
    Pooled,
    TimmVGG,
    filled,
    grown,
    nested,
    textbook_net,
    torchvision_net,
    with_head,
)
from test_foreign_layouts import adopted, distance, refused
from torch import Tensor, nn

from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.errors import UsageError
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.detection import backbone
from vggdeploy.model.foreign.convert import convert
from vggdeploy.model.foreign.facts import Head
from vggdeploy.model.foreign.files import StateFile
from vggdeploy.model.foreign.head import parse_head, settled
from vggdeploy.model.foreign.infer import spec_from_state
from vggdeploy.model.foreign.initial import load_initial_weights
from vggdeploy.model.foreign.layouts import recognise
from vggdeploy.model.layers import summarise
from vggdeploy.model.outputs import default_outputs, output_specs
from vggdeploy.model.vgg import new_vgg
from vggdeploy.model.weights import load_model, save_checkpoint
from vggdeploy.spec import ModelSpec, PreprocessSpec

Make = Callable[[], nn.Module]
MAP = 64 * 49

HEADS: dict[str, tuple[Make, dict[str, object], tuple[int, ...], int]] = {
    "two layers": (lambda: with_head(nn.Linear(MAP, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 7)), {}, (12,), 7),
    "two layers and no dropout": (lambda: with_head(nn.Linear(MAP, 12), nn.ReLU(), nn.Linear(12, 7)), {}, (12,), 7),
    "one layer": (lambda: with_head(nn.Linear(MAP, 7)), {}, (), 7),
    "one layer in a Sequential": (lambda: with_head(nn.Dropout(), nn.Linear(MAP, 7)), {}, (), 7),
    "four layers": (
        lambda: with_head(
            nn.Linear(MAP, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 3)
        ), {}, (24, 16, 9), 3,
    ),
    "nested in classifier[6]": (nested, {}, (24, 16, 12), 3),
    "pooled, one layer": (lambda: filled(Pooled(nn.Linear(64, 7))), {"head": "avg,none", "image_size": 96}, (), 7),
    "pooled, two layers": (
        lambda: filled(Pooled(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 7)))),
        {"head": "avg,relu,none"}, (16,), 7,
    ),
    "pooled by maximum": (
        lambda: filled(Pooled(nn.Linear(64, 7), pool="max")), {"head": "max,none", "image_size": 64}, (), 7,
    ),
    "pooled, where the map has one pixel": (lambda: filled(Pooled(nn.Linear(64, 7))), {"image_size": 32}, (), 7),
    "pooled in a Sequential": (
        lambda: filled(
            nn.Sequential(torchvision_net().features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 7))
        ), {"head": "avg,none"}, (), 7,
    ),
    "averaged to 2 × 2": (
        lambda: filled(
            nn.Sequential(torchvision_net().features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 7))
        ), {"head": "avg,none", "image_size": 160}, (), 7,
    ),
    "appended, a ReLU before it": (lambda: filled(Appended(relu=True)), {"head": "relu,relu,relu,none"}, (24, 16, 5), 3),
    "appended, nothing before it": (lambda: filled(Appended(relu=False)), {"head": "relu,relu,none,none"}, (24, 16), 3),
    "appended in a Sequential": (
        lambda: filled(nn.Sequential(torchvision_net(), nn.ReLU(), nn.Linear(CLASSES, 3))),
        {"head": "relu,relu,relu,none"}, (24, 16, 5), 3,
    ),
    "added to the classifier": (grown, {"head": "relu,relu,none,none"}, (24, 16), 3),
    "under names of their own": (lambda: filled(Functional()), {"head": "relu,relu,none"}, (24, 16), CLASSES),
    "one layer without bias": (lambda: with_head(nn.Linear(MAP, 7, bias=False)), {}, (), 7),
    "only linear": (
        lambda: with_head(nn.Linear(MAP, 12, bias=False), nn.Linear(12, 9), nn.Linear(9, 3, bias=False)),
        {"head": "none,none,none"}, (), 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_computes_what_the_original_computes(kind: str) -> None:
    make, about, hidden, classes = HEADS[kind]
    net = make()
    model = adopted(net.state_dict(), **about)
    assert (model.spec.hidden, model.spec.classes) == (hidden, classes)
    assert distance(model, net) < 1e-5


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_the_order_of_the_keys_and_a_prefix_change_nothing(kind: str, backwards: bool) -> None:
    """Backwards the layers under names of their own stand in the file as they do not follow each other."""
    make, about, *_ = HEADS[kind]
    net = make()
    state = {f"module.{key}": tensor for key, tensor in sorted(net.state_dict().items(), reverse=backwards)}
    assert distance(adopted(state, **about), net) < 1e-5


def last_features(net: nn.Module, x: Tensor) -> Tensor:
    return net.features(x)  # type: ignore[operator]


HEADLESS: dict[str, tuple[Callable[[nn.Module], Mapping[str, Tensor]], Make]] = {
    "features alone": (lambda net: net.features.state_dict(), torchvision_net),
    "a network without classifier": (
        lambda net: {k: v for k, v in net.state_dict().items() if k.startswith("features")}, torchvision_net,
    ),
    "timm's features_only": (
        lambda net: {
            k.replace("features.", "features_"): v for k, v in net.state_dict().items() if k.startswith("features")
        }, lambda: filled(TimmVGG(batch_norm=True)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADLESS)
def test_a_network_without_head_gives_its_last_map(kind: str) -> None:
    pick, make = HEADLESS[kind]
    net = make()
    model = adopted(pick(net), image_size=64)
    assert (model.spec.classes, model.spec.hidden) == (0, ())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = last_features(net, x)
        assert model(x).shape == (2, 64, 2, 2)
        assert float((model(x) - expected).abs().max() / expected.abs().max()) < 1e-5


def test_timms_without_its_last_layer_gives_what_its_pre_logits_give() -> None:
    net = filled(TimmVGG())
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("head")}
    net.head["fc"] = nn.Identity()  # as num_classes=0 makes it
    model = adopted(state)
    assert (model.spec.hidden, model.spec.classes) == ((24, 16), 0)
    assert distance(model, net) < 1e-5


def test_timms_last_layer_may_be_a_network() -> None:
    net = filled(TimmVGG())
    net.head["fc"] = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 3))
    filled(net)
    model = adopted(net.state_dict())
    assert (model.spec.hidden, model.spec.classes) == ((24, 16, 12), 3)
    assert distance(model, net) < 1e-5


def test_features_that_end_in_a_linear_layer_are_features_when_that_is_said() -> None:
    net = with_head(nn.Linear(MAP, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU())
    assert "class scores, or features" in refused(lambda: adopted(net.state_dict()))
    model = adopted(net.state_dict(), head="relu,relu")
    assert (model.spec.hidden, model.spec.classes) == ((16, 16), 0)
    assert distance(model, net) < 1e-5


def notes_of(net: nn.Module, head: str | None = None, **about: object) -> tuple[str, ...]:
    foreign = settled(recognise(StateFile("w", net.state_dict())), parse_head(head) if head else None)
    return convert(foreign, spec_from_state(foreign, **about)).notes  # type: ignore[arg-type]


def test_what_was_taken_is_said_with_how_to_say_otherwise() -> None:
    net = with_head(nn.Linear(MAP, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 7))
    (note,) = notes_of(net)
    assert "taken: a ReLU between classifier.0 and classifier.3" in note
    assert "class scores from classifier.3" in note
    assert "--head, here relu,none" in note
    assert notes_of(net, "relu,none") == ()
    assert notes_of(torchvision_net()) == ()  # of the paper's head nothing is assumed
    merged = notes_of(net, "none,none")
    assert merged == ("nothing stands between classifier.0 and classifier.3: they became one layer",)


def test_a_relu_that_is_not_there_makes_another_network_and_the_flag_the_right_one() -> None:
    """What the note is for: dropout alone between two layers looks like a ReLU and dropout."""
    net = with_head(nn.Linear(MAP, 12), nn.Dropout(), nn.Linear(12, 7))
    assert distance(adopted(net.state_dict()), net) > 0.1
    assert distance(adopted(net.state_dict(), head="none,none"), net) < 1e-5


def modules(*layers: nn.Module) -> nn.Module:
    net = torchvision_net()
    net.classifier = nn.ModuleList(layers)
    return filled(net)


@pytest.mark.parametrize(
    ("make", "about", "cause", "remedy"),
    [
        (grown, {}, "a ReLU stands between classifier.6 and classifier.7", "--head relu,relu,none,none where"),
        (
            lambda: modules(nn.Linear(MAP, 9), nn.Linear(9, 8), nn.Linear(8, 3)), {},
            "between classifier.0 and classifier.1, or between classifier.1 and classifier.2", "--head relu,relu,none with",
        ),
        (lambda: filled(Appended(relu=True)), {}, "between backbone.classifier.6 and fc", "--head relu,relu,relu,none with"),
        (lambda: filled(Functional()), {}, "between fc1 and fc2, or between fc2 and fc3", "--head relu,relu,none with"),
        (lambda: filled(Pooled(nn.Linear(64, 7))), {}, "one for each channel", "--image-size 224 --head avg,none (or max)"),
        (
            lambda: filled(Pooled(nn.Linear(64, 7))), {"image_size": 96},
            "the mean or maximum of a larger map", "--image-size 32, or --image-size 96 --head avg,none",
        ),
        (lambda: textbook_net(size=32), {}, "the 1 × 1 map of 32 px images", "--image-size 32"),
        (
            lambda: with_head(nn.Linear(256, 12), nn.ReLU(), nn.Linear(12, 9), nn.Linear(9, 7)),
            {"head": "relu,none,none", "image_size": 224}, "for images of 64 px, not 224", "--head avg,relu,none,none",
        ),
        (lambda: with_head(nn.Linear(MAP, 7)), {"head": "max,none"}, "takes a 7 × 7 map, no maximum", "--head none"),
        (
            lambda: textbook_net(size=64), {"image_size": 224},
            "was made for images of 64 px, not 224", "--head avg,relu,relu,none",
        ),
        (lambda: with_head(nn.Linear(MAP, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 7)), {}, "classifier.1", ""),
        (lambda: with_head(nn.Linear(64 * 3, 7)), {}, "no square map of 64 channels", ""),
        (lambda: with_head(nn.Linear(MAP, 12), nn.ReLU(), nn.Linear(11, 7)), {}, "classifier.2 takes 11 inputs", ""),
    ],
)  # fmt: skip
def test_what_weights_cannot_tell_is_asked_for(make: Make, about: dict[str, object], cause: str, remedy: str) -> None:
    text = refused(lambda: adopted(make().state_dict(), **about))
    assert cause in text
    assert remedy in text


def test_layers_that_fit_in_more_than_one_order_are_refused() -> None:
    net = Functional()
    net.fc1, net.fc2, net.fc3 = nn.Linear(256, 16), nn.Linear(16, 16), nn.Linear(16, 16)
    state = filled(net).state_dict()
    assert "does not tell in which order" in refused(lambda: adopted(state, head="relu,relu,none"))


def test_two_heads_side_by_side_are_refused() -> None:
    state = torchvision_net().state_dict() | {"age.weight": torch.zeros(2, 16), "age.bias": torch.zeros(2)}
    assert "takes 16 inputs" in refused(lambda: adopted(state, head="relu,relu,none,none"))


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("none", Head(relus=(False,))),
        ("relu,relu,none", Head(relus=(True, True, False))),
        (" AVG, none", Head("avg", (False,))),
        ("max,relu", Head("max", (True,))),
    ],
)
def test_a_head_is_read_as_it_is_written(text: str, head: Head) -> None:
    assert parse_head(text) == head
    assert parse_head(str(head)) == head


@pytest.mark.parametrize("text", ["", "avg", "relu,,none", "relu none", "none,avg", "tanh", "2"])
def test_what_is_no_head_is_refused_with_an_example(text: str) -> None:
    assert "--head relu,relu,none" in refused(lambda: parse_head(text), UsageError)


@pytest.mark.parametrize("head", ["relu,none", "relu,relu,relu,none"])
def test_a_head_of_another_number_of_layers_is_refused(head: str) -> None:
    text = refused(lambda: adopted(torchvision_net().state_dict(), head=head), UsageError)
    assert "w.pth has 3" in text
    assert "--head relu,relu,none" in text


def test_a_multiplied_layer_is_exact_and_nothing_of_it_counts_as_unused() -> None:
    net = with_head(nn.Linear(MAP, 12), nn.ReLU(), nn.Linear(12, 9), nn.Linear(9, 3))
    foreign = settled(recognise(StateFile("w", net.state_dict())), parse_head("relu,none,none"))
    found = convert(foreign, spec_from_state(foreign))
    a, b = net.classifier[2], net.classifier[3]  # type: ignore[index]
    expected = (b.weight.double() @ a.weight.double()).float()
    torch.testing.assert_close(found.state["classifier.3.weight"], expected, rtol=0, atol=0)
    assert found.unused == ()


def test_a_spec_of_before_is_read_as_it_was() -> None:
    old = b'{"arch":"vgg11","blocks":[[64],[128],[256,256],[512,512],[512,512]],"hidden":[4096,4096],"ranks":[0,0]}'
    spec = msgspec.json.decode(old, type=ModelSpec)
    assert spec == ModelSpec.named("vgg11")
    assert (spec.dense, spec.last, spec.head_pool) == (("fc6", "fc7"), "fc8", "none")
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ModelSpec) == spec


def small(**about: object) -> ModelSpec:
    blocks = ((8,), (16,))
    return ModelSpec(arch="custom", blocks=blocks, image_size=16, **about)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("about", "cause"),
    [
        ({"classes": 1}, "1 classes"),
        ({"hidden": (), "classes": 0, "head_pool": "avg"}, "no linear layer behind it"),
        ({"hidden": (8,) * 17}, "larger than any VGG"),
        ({"hidden": (8,), "ranks": (2, 3)}, "2 ranks"),
        ({"hidden": (8,), "ranks": (9,)}, "rank 9 of fc6"),
    ],
)
def test_heads_that_make_no_network_are_refused(about: dict[str, object], cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        small(**about)


HEADED = [
    small(hidden=(), classes=0),
    small(hidden=(6,), classes=0),
    small(hidden=(), classes=4, head_pool="max"),
    small(hidden=(6, 5, 4), classes=4, head_pool="avg"),
]


@pytest.mark.parametrize("spec", HEADED, ids=str)
def test_a_checkpoint_of_any_head_is_read_again_and_training_starts_from_it(spec: ModelSpec, tmp_path: Path) -> None:
    model = new_vgg(spec, seed=1)
    record = Checkpoint(spec=spec, preprocess=PreprocessSpec(resize=16, crop=16), labels=())
    save_checkpoint(tmp_path / "c", model, record)
    assert load_model(tmp_path / "c").spec == spec
    target = new_vgg(msgspec.structs.replace(spec, classes=7), seed=2)
    report = load_initial_weights(str(tmp_path / "c"), target, allow_head_mismatch=True)
    assert report.fresh == tuple(k for k in target.state_dict() if k.startswith(f"classifier.{3 * len(spec.hidden)}."))
    for key, tensor in model.state_dict().items():
        assert torch.equal(target.state_dict()[key], tensor) or key in report.fresh


@pytest.mark.parametrize("spec", HEADED, ids=str)
def test_a_detector_takes_its_features_whatever_the_head(spec: ModelSpec) -> None:
    model = new_vgg(spec, seed=1).eval()
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = backbone(model, (1, 2)).eval()(x)
        torch.testing.assert_close(found["1"], model.features[:5](x))


@pytest.mark.parametrize("spec", HEADED, ids=str)
def test_the_default_output_is_what_the_network_gives(spec: ModelSpec) -> None:
    (name,) = default_outputs(spec)
    assert name == ("logits" if spec.classes else "fc6" if spec.hidden else "pool2")
    model = new_vgg(spec, seed=1).eval()
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (found,) = Deployable(model, PreprocessSpec(resize=16, crop=16), outputs=(name,), input_dtype="float32")(image)
        torch.testing.assert_close(found, model(image))
    assert output_specs(spec, (name,))[0].item_shape == tuple(found.shape[1:])
    assert sum(p.numel() for p in model.parameters()) == summarise(spec).parameters


@pytest.mark.parametrize("size", [0, -32, 33])
@pytest.mark.parametrize("kind", ["one layer", "pooled, two layers", "appended, nothing before it"])
def test_a_size_that_fits_no_map_is_a_slip_of_the_users(kind: str, size: int) -> None:
    make, about, *_ = HEADS[kind]
    assert "give a multiple of 32" in refused(
        lambda: adopted(make().state_dict(), **{**about, "image_size": size}), UsageError
    )
