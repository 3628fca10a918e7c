"""A batch-normed network is in memory as often as a plain one while it is exported: once."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

import vggdeploy.export.onnx as onnx_module
import vggdeploy.export.torchscript as torchscript_module
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.model import vgg
from vggdeploy.model.weights import save_checkpoint
from vggdeploy.spec import ModelSpec, PreprocessSpec


def held() -> dict[int, int]:
    """Address and bytes of the memory of every tensor that is alive."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@pytest.mark.parametrize(("arch", "kept"), [("vgg11", False), ("vgg11_bn", False), ("vgg11_bn", True)])
def test_the_weights_are_in_memory_once_while_a_file_is_written(
    arch: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``kept``: the fault that this is to notice is planted. Somebody holds the network that was not folded yet."""
    spec = ModelSpec.named(arch, width=0.25, hidden=64, classes=10, image_size=32)
    about = Checkpoint(spec=spec, preprocess=PreprocessSpec(resize=32, crop=32), labels=tuple("0123456789"))
    save_checkpoint(tmp_path / "ckpt", vgg.new_vgg(spec), about)
    before, holding = held(), []
    if kept:
        fold = vgg.fold_batch_norm
        monkeypatch.setattr(vgg, "fold_batch_norm", lambda model: (holding.append(model), fold(model))[1])
    seen: list[int] = []
    for module, name in ((onnx_module, "export_onnx"), (torchscript_module, "export_torchscript")):
        real = getattr(module, name)

        def counting(network, *args, real=real, **options):
            bigger = {place: size for place, size in held().items() if place not in before and size > 10_000}
            whole = sum(parameter.nbytes for parameter in network.parameters() if parameter.nbytes > 10_000)
            seen.append(round(sum(bigger.values()) / whole, 2))
            return real(network, *args, **options)

        monkeypatch.setattr(module, name, counting)
    formats = ["onnx-fp32", "onnx-fp16", "torchscript-fp32"]
    export_bundle(tmp_path / "ckpt", tmp_path / "bundle", ExportOptions(formats=formats))
    assert len(seen) == 3
    assert (max(seen) > 1.05) == kept, seen
