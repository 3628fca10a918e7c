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
    _add_engine(home / "bundle")
    shutil.copytree(home / "bundle", home / "signed")
    key = home / "release.pem"
    new_key(key)
    opened = Bundle.open(home / "signed")
    with update_bundle(opened) as draft:
        draft.manifest = opened.manifest
    (home / "signed" / "model.sig").write_bytes(make_signature(home / "signed", key))
    _weights(home)
    return home


ENGINE = "tensorrt-rtx-fp16"


def _add_engine(root: Path) -> None:
    """A variant whose file has the header of an engine, and nothing behind it: no library may ever see it."""
    from vggdeploy.bundle import BuildRecord, Bundle, Measurement, Variant, update_bundle
    from vggdeploy.runtime.preflight import _RTX_HEADER
    from vggdeploy.system.machine import fingerprint
    from vggdeploy.types import BatchRange, Precision

    head = _RTX_HEADER.pack(b"vtrt", 2, 4096, 1, 7, 1, 116, b"vtrt", 8)
    record = BuildRecord(
        library="tensorrt_rtx", version="1.7.1.116", source="variants/onnx-fp32/model.onnx", source_sha256="0" * 64,
        targets=("sm89",), options={"precision": "fp16"}, seconds=1.0, driver="13.0",
    )  # fmt: skip
    path = f"variants/{ENGINE}/model.engine"
    engine = Variant(
        name=ENGINE, format="tensorrt-rtx", precision=Precision.FP16, path=path, batch=BatchRange(), build=record
    )
    bundle = Bundle.open(root)
    measured = Measurement(machine=fingerprint(), backend="onnxruntime", batch=1, threads=1, p50_ms=1.0)
    onnx = bundle.manifest.variant("onnx-fp32")
    with update_bundle(bundle) as draft:
        draft.write(path, head + bytes(4096 - len(head)))
        import msgspec

        draft.manifest = bundle.manifest.with_variants(engine, msgspec.structs.replace(onnx, measured=(measured,)))


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
