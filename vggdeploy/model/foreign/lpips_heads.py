"""The heads of LPIPS, from the public package ``lpips``, whose file is read as every foreign file: nothing in it is run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import Manifest
from vggdeploy.errors import CheckpointError, MissingDependencyError, UsageError
from vggdeploy.model.foreign.files import read_state_file
from vggdeploy.model.outputs import LPIPS_LAYERS
from vggdeploy.spec import ARCHITECTURES, PreprocessSpec, scaled_blocks

_VGG16 = scaled_blocks(ARCHITECTURES["vgg16"], 1.0)


def lpips_heads() -> dict[str, NDArray[np.float64]]:
    """Layer → the weight of each of its channels ``[C]``: version 0.1 of the heads for VGG-16.

    Raises:
        MissingDependencyError: the package is not installed.
        CheckpointError: its file is not what it was.
    """
    found = find_spec("lpips")
    if found is None or found.origin is None:
        raise MissingDependencyError(
            "LPIPS's heads come with the Python package 'lpips', and it is not installed", "pip install lpips"
        )
    file = Path(found.origin).parent / "weights" / "v0.1" / "vgg.pth"
    tensors = read_state_file(file).tensors
    names = [f"lin{number}.model.1.weight" for number in range(len(LPIPS_LAYERS))]
    if set(tensors) != set(names) or any(t.ndim != 4 or t.numel() != t.shape[1] for t in tensors.values()):
        raise CheckpointError(f"{file} does not hold LPIPS's five heads", "pip install --force-reinstall lpips")
    return {layer: tensors[name].flatten().double().numpy() for layer, name in zip(LPIPS_LAYERS, names, strict=True)}


def check_fits_lpips(manifest: Manifest) -> None:
    """Refuse a network whose distance would be called LPIPS and is not: the heads were fitted to one network's features.

    Raises:
        UsageError: it is no VGG-16 without batch norm, or its images are normalised in another way.
    """
    spec, usual = manifest.spec, PreprocessSpec()
    if spec.blocks != _VGG16 or spec.batch_norm or any(map(any, spec.conv_ranks)):
        raise UsageError(
            f"LPIPS's heads were fitted to VGG-16 without batch norm, and this is {spec.title}",
            "leave --heads out: the distance between this network's own features, each channel weighted alike",
        )
    same = manifest.preprocess.channels == 3 and np.allclose(
        [manifest.preprocess.mean, manifest.preprocess.std], [usual.mean, usual.std], atol=1e-3
    )
    if not same:
        raise UsageError(
            "LPIPS's heads were fitted to images that are normalised as ImageNet's, and this bundle's are not",
            "export it again with ImageNet's mean and std, or leave --heads out",
        )
