"""Where a network looked: Grad-CAM, a heat map over the image for one class, by the FP32 reference."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vggdeploy.bundle import Bundle, Manifest
from vggdeploy.errors import UsageError
from vggdeploy.model.outputs import output_layers
from vggdeploy.model.vgg import VGG
from vggdeploy.model.weights import new_with_weights
from vggdeploy.preprocess import normalise
from vggdeploy.runtime.exact import exact_fp32

_STOPS = np.array([[13, 8, 95], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]], np.float64)  # "plasma"
_SMALLEST = 224  # pixels of a picture's side: a heat map over 32 pixels is nothing to look at


class GradCam:
    """The reference of a bundle, asked where it looked.

    Raises:
        UsageError: the bundle gives no class scores.
        BundleError: it has no reference (a slim bundle), or a damaged one.
    """

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        if not manifest.spec.classes:
            raise UsageError(
                "this network gives features and no class scores, so there is no class to explain",
                "explain the network with its classes",
            )
        with bundle.main_file(manifest.reference()).open() as file:
            self._model: VGG = new_with_weights(manifest.spec, file)
        self._manifest: Manifest = manifest
        layers = output_layers(manifest.spec)
        self.layer = next(name for name in reversed(layers) if name.startswith("relu"))
        self._split = layers[self.layer].index + 1

    def __call__(self, pixels: NDArray[np.uint8], classes: Sequence[int]) -> NDArray[np.float32]:
        """How much each place spoke for a class.

        L = ReLU(Σ꜀ α꜀ A꜀) with α꜀ the mean over all positions of ∂score/∂A꜀ (Selvaraju et al. 2017, "Grad-CAM", eqs. 1
        and 2), where A are the maps after the last ReLU before the head, and the score is the one before the softmax.

        Args:
            pixels: prepared images, ``uint8 [N, H, W, C]``.
            classes: an index for each.

        Returns:
            ``float32 [N, h, w]`` at the size of the maps, each divided by its largest value. All 0 where nothing spoke for
            the class.
        """
        images = torch.from_numpy(np.ascontiguousarray(normalise(pixels, self._manifest.preprocess)))
        heats = [self._one(image[None], index) for image, index in zip(images, classes, strict=True)]
        return np.stack(heats) if heats else np.empty((0, 0, 0), np.float32)

    def _one(self, image: Tensor, index: int) -> NDArray[np.float32]:
        model = self._model
        with exact_fp32(torch):
            with torch.no_grad():
                maps = model.features[: self._split](image)
            maps = maps.detach().requires_grad_()
            with torch.enable_grad():
                scores = model.classifier(model.neck(model.features[self._split :](maps)))
                (slopes,) = torch.autograd.grad(scores[0, index], maps)
        heat = (slopes.mean(dim=(2, 3), keepdim=True) * maps.detach()).sum(dim=1)[0].clamp(min=0)
        largest = float(heat.max())
        return np.asarray((heat / largest if largest > 0 else heat).numpy(), np.float32)


def heat_picture(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> bytes:
    """A PNG: the image as the network saw it, and beside it the same under its heat map (dark: nothing, yellow: most).

    Args:
        pixels: one prepared image, ``uint8 [H, W, C]``.
        heat: ``float32 [h, w]``, 0 to 1.
    """
    side = max(_SMALLEST, *pixels.shape[:2])
    seen = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")
    seen = seen.resize((side, side), Image.Resampling.BICUBIC)
    spread = np.asarray(Image.fromarray(heat).resize((side, side), Image.Resampling.BILINEAR))
    colours = np.stack([np.interp(spread, np.linspace(0, 1, len(_STOPS)), stops) for stops in _STOPS.T], axis=-1)
    picture = Image.new("RGB", (2 * side + side // 28, side), "white")
    picture.paste(seen, (0, 0))
    picture.paste(Image.blend(seen, Image.fromarray(np.uint8(colours.round())), 0.55), (side + side // 28, 0))
    out = BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
