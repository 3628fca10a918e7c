"""What every mutation starts from: real files, made once by the package itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def prepare(home: Path, checkpoint: Path | None = None, bundle: Path | None = None) -> Path:
    """Fill ``home`` with good files; a checkpoint and its bundle that are there already are copied."""
    from vggdeploy.bundle import Bundle, update_bundle
    from vggdeploy.bundle.signature import make_signature, new_key
    from vggdeploy.export.bundle import ExportOptions, export_bundle

    home.mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        from vggdeploy.train.loop import train
        from vggdeploy.train.recipe import Recipe

        recipe = Recipe(arch="vgg11_bn", width=0.125, hidden=128, dropout=0.0, dataset="digits", epochs=4)
        train(recipe, output=home / "checkpoint")
    else:
        shutil.copytree(checkpoint, home / "checkpoint")
    if bundle is None:
        export_bundle(home / "checkpoint", home / "bundle", ExportOptions(samples=100))
    else:
        shutil.copytree(bundle, home / "bundle")
    shutil.copytree(home / "bundle", home / "signed")
    key = home / "release.pem"
    new_key(key)
    opened = Bundle.open(home / "signed")
    with update_bundle(opened) as draft:
        draft.manifest = opened.manifest
    (home / "signed" / "model.sig").write_bytes(make_signature(home / "signed", key))
    _weights(home)
    return home


def _weights(home: Path) -> None:
    import torch

    from vggdeploy.model.vgg import VGG
    from vggdeploy.spec import ModelSpec

    torch.manual_seed(0)
    net = VGG(ModelSpec(arch="custom", blocks=((2,), (3,)), image_size=8, hidden=(4,), classes=3, dropout=0.0))
    state = {"state_dict": net.state_dict(), "epoch": 3, "best": 0.5}
    torch.save(state, home / "weights.pth")
    torch.save(state, home / "legacy.pth", _use_new_zipfile_serialization=False)


def linked(source: Path, target: Path) -> Path:
    """A copy of a directory that costs nothing: files are links, which a target replaces and never writes into."""
    shutil.copytree(source, target, copy_function=os.link)
    return target
