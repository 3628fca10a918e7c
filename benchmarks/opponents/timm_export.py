"""timm's own VGG, exported with timm's own exporter, in a plain ONNX Runtime session.

Source: github.com/huggingface/pytorch-image-models, onnx_export.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opponents.job import Job, Loop, ort_calls, torch_model
from vggdeploy.bundle import Bundle

NEEDS = "timm"


def plain(job: Job) -> Iterator[Any]:
    import timm
    import torch
    from timm.utils.onnx import onnx_export

    model = timm.create_model(Bundle.open(job.bundle, only=()).manifest.spec.arch, pretrained=False, exportable=True)
    source, wanted = torch_model(job).state_dict(), model.state_dict()
    assert len(source) == len(wanted)  # the same tensors in the same order; timm's fc6 and fc7 are convolutions
    model.load_state_dict({k: v.reshape(w.shape) for (k, w), v in zip(wanted.items(), source.values(), strict=True)})
    path = Path(job.home, "timm.onnx")
    onnx_export(model, str(path), example_input=torch.from_numpy(job.floats[: job.batch]))
    del model
    return ort_calls(job, path)


LOOPS: dict[str, Loop] = {"timm's ONNX": plain}
