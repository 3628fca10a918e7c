"""The exported module: pixels in, named outputs out, and each is what its layer computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vggdeploy.errors import UsageError
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.outputs import output_layers, output_specs
from vggdeploy.model.vgg import VGG, new_vgg
from vggdeploy.preprocess import normalise
from vggdeploy.spec import ModelSpec, PreprocessSpec

GREY = PreprocessSpec(mode="L", resize=32, crop=32, mean=(0.3,), std=(0.4,))
RGB = PreprocessSpec(resize=32, crop=32)


def build(arch: str, in_channels: int = 1) -> VGG:
    spec = ModelSpec.named(arch, width=0.125, in_channels=in_channels, classes=10, image_size=32, hidden=24)
    return new_vgg(spec, seed=3).eval()


def pixels(count: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, channels), np.uint8)


def hooked(model: VGG, images: Tensor) -> dict[str, Tensor]:
    """The output of every layer by key, copied before an in-place ReLU can change it."""
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, __, out, key=key: found.update({key: out.clone()}))
        for key, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Linear))
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn"])
def test_every_named_output_is_its_layers(arch: str) -> None:
    model, batch = build(arch), pixels(3)
    names = list(output_layers(model.spec))
    with torch.inference_mode():
        layers = hooked(model, torch.from_numpy(normalise(batch, GREY)))
        outputs = Deployable(model, GREY, outputs=names)(torch.from_numpy(batch))
    for name, output, spec in zip(names, outputs, output_specs(model.spec, names), strict=True):
        expected = layers[output_layers(model.spec)[name].key]
        expected = torch.softmax(expected, 1) if name == "probabilities" else expected
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
        assert output.dtype == torch.float32
        assert tuple(output.shape[1:]) == spec.item_shape


@pytest.mark.parametrize("name", ["conv1_1", "relu2_1", "pool5", "fc6", "logits"])
def test_an_output_alone_is_the_same_and_nothing_behind_it_runs(name: str) -> None:
    model, batch = build("vgg11_bn"), torch.from_numpy(pixels(2))
    last, ran = output_layers(model.spec)[name], []
    with torch.inference_mode():
        together = dict(zip(["pool1", name], Deployable(model, GREY, outputs=["pool1", name])(batch), strict=True))
        for key, module in model.named_modules():
            module.register_forward_hook(lambda *_, key=key: ran.append(key))
        (alone,) = Deployable(model, GREY, outputs=[name])(batch)
    torch.testing.assert_close(alone, together[name], rtol=0, atol=0)
    assert ran[-1] == last.key


def test_pixels_are_normalised_as_torchvision_would() -> None:
    from torchvision.transforms.v2 import functional

    model, batch = build("vgg11", 3), pixels(4, 3)
    images = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected = model(functional.normalize(images, list(RGB.mean), list(RGB.std)))
        (logits,) = Deployable(model, RGB)(torch.from_numpy(batch))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_scale_and_shift_have_known_answers() -> None:
    deployable = Deployable(build("vgg11"), PreprocessSpec(mode="L", resize=32, crop=32, mean=(0.5,), std=(0.25,)))
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).float()
    torch.testing.assert_close(
        image * deployable.scale.item() + deployable.shift.item(), torch.tensor([-2.0, -1.2, 2.0])
    )


def test_a_float_graph_takes_what_normalise_gives() -> None:
    model, batch = build("vgg11_bn"), pixels(3)
    with torch.inference_mode():
        (from_pixels,) = Deployable(model, GREY)(torch.from_numpy(batch))
        (from_floats,) = Deployable(model, GREY, input_dtype="float32")(torch.from_numpy(normalise(batch, GREY)))
    torch.testing.assert_close(from_floats, from_pixels, rtol=1e-5, atol=1e-5)


def test_a_half_model_still_answers_in_float32() -> None:
    model, batch = build("vgg11"), torch.from_numpy(pixels(2))
    with torch.inference_mode():
        (single,) = Deployable(model, GREY)(batch)
        (half,) = Deployable(model.half(), GREY)(batch)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, single, rtol=0.02, atol=0.02)


def test_the_state_dict_is_the_models() -> None:
    model = build("vgg11_bn")
    assert Deployable(model, GREY).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("outputs", "cause"),
    [([], "name at least one"), (["fc7", "fc7"], "only once"), (["fc9"], "output 'fc9' is unknown")],
)
def test_outputs_that_are_none_are_refused(outputs: list[str], cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        Deployable(build("vgg11"), GREY, outputs=outputs)
