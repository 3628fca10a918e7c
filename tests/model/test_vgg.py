"""The torch module is what its spec says, and what torchvision's VGG is."""

from __future__ import annotations

import pytest
import torch
import torchvision

from vggdeploy.model.layers import layers_of, summarise
from vggdeploy.model.vgg import VGG, fold_batch_norm, new_vgg, plain_spec
from vggdeploy.model.weights import load_state
from vggdeploy.spec import CUSTOM, ModelSpec, architecture_names


def small(arch: str, **change: int) -> ModelSpec:
    options = {"in_channels": 1, "classes": 10, "image_size": 32, "hidden": 16} | change
    return ModelSpec.named(arch, width=0.125, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", architecture_names())
def test_keys_and_shapes_are_torchvisions(arch: str) -> None:
    with torch.device("meta"):
        ours, theirs = VGG(ModelSpec.named(arch)), torchvision.models.get_model(arch, weights=None, init_weights=False)
    mine = {k: (v.shape, v.dtype) for k, v in ours.state_dict().items()}
    assert list(mine.items()) == [(k, (v.shape, v.dtype)) for k, v in theirs.state_dict().items()]


@pytest.mark.parametrize("arch", architecture_names())
@pytest.mark.parametrize(("width", "size", "channels"), [(1.0, 224, 3), (0.25, 64, 1)])
def test_the_module_has_the_summarys_parameters(arch: str, width: float, size: int, channels: int) -> None:
    spec = ModelSpec.named(arch, width=width, image_size=size, in_channels=channels, classes=7)
    with torch.device("meta"):
        model = VGG(spec)
    assert sum(p.numel() for p in model.parameters()) == summarise(spec).parameters


def test_a_torchvision_state_dict_gives_the_same_logits() -> None:
    spec = ModelSpec.named("vgg11")
    with torch.device("meta"):
        ours, theirs = VGG(spec), torchvision.models.vgg11(weights=None)
    theirs.load_state_dict(new_vgg(spec).state_dict(), assign=True)
    theirs.eval()
    load_state(ours, theirs.state_dict(), where="torchvision")
    images = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs(images), rtol=0, atol=0)


def test_every_layer_gives_the_shape_it_announces() -> None:
    spec = ModelSpec(
        arch=CUSTOM, blocks=((3, 5), (7,), (4, 4, 4)), batch_norm=True, in_channels=3, classes=6, image_size=24,
        hidden=(9, 11),
    )  # fmt: skip
    model, shapes = new_vgg(spec).eval(), {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    model(torch.zeros(2, 3, 24, 24))
    assert {x.key: x.shape for x in layers_of(spec)} == {k: v for k, v in shapes.items() if "." in k}


def test_new_weights_are_xavier_uniform() -> None:
    model = new_vgg(small("vgg11_bn", hidden=512))
    conv, linear = model.features[4], model.classifier[3]
    for weight, fans in ((conv.weight, 9 * (8 + 16)), (linear.weight, 512 + 512)):
        bound = (6 / fans) ** 0.5
        assert weight.abs().max() <= bound
        # The standard deviation of U(−a, a) is a/√3; 1,152 samples are the fewest here.
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.06)
    assert not conv.bias.any()
    assert not linear.bias.any()
    norm = model.features[1]
    assert (norm.weight == 1).all() and (norm.running_var == 1).all() and not norm.running_mean.any()


def test_the_seed_decides_the_weights_and_nothing_else_moves() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (new_vgg(small("vgg11"), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["features.0.weight"], other["features.0.weight"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("arch", ["vgg11_bn", "vgg19_bn"])
def test_folding_batch_norm_changes_nothing_but_the_layers(arch: str) -> None:
    model = new_vgg(small(arch)).eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.features:
        if isinstance(module, torch.nn.BatchNorm2d):
            tensors = (module.weight, module.bias, module.running_mean, module.running_var)
            for tensor, low in zip(tensors, (0.5, -0.5, -1, 0.2), strict=True):
                tensor.data.uniform_(low, low + 1, generator=generator)
    folded = fold_batch_norm(model)
    images = torch.randn(4, 1, 32, 32, generator=generator)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert folded.spec == plain_spec(model.spec)
    assert folded.spec.arch == arch.removesuffix("_bn")
    assert not folded.training


def test_folding_leaves_the_model_as_it_was() -> None:
    model = new_vgg(small("vgg11_bn"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fold_batch_norm(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_without_batch_norm_there_is_nothing_to_fold() -> None:
    model = new_vgg(small("vgg11"))
    assert fold_batch_norm(model) is model
