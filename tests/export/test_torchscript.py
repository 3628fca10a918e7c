"""The exported TorchScript, loaded without any class of ours."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from vggdeploy.bundle import Bundle
from vggdeploy.export.torchscript import export_torchscript
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.outputs import input_spec
from vggdeploy.model.vgg import new_vgg
from vggdeploy.spec import ModelSpec, PreprocessSpec

_LOAD = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
images = torch.from_numpy(np.load(sys.argv[2]))
(logits,) = torch.jit.load(sys.argv[1])(images)
np.save(sys.argv[3], logits.detach().numpy())
assert not any(name.startswith("vggdeploy") for name in sys.modules)
"""


def test_it_runs_where_vggdeploy_is_not_imported(bundle: Bundle, tmp_path) -> None:
    model, inputs = bundle.path("variants/torchscript-fp32/model.pt"), bundle.path("golden/inputs/image.npy")
    command = [sys.executable, "-c", _LOAD, str(model), str(inputs), str(tmp_path / "out.npy")]
    subprocess.run(command, check=True, cwd=tmp_path)
    found = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(found, bundle.golden()[1]["logits"], rtol=1e-4, atol=1e-4)


def test_its_precision_is_read_back(bundle: Bundle) -> None:
    proof = bundle.manifest.variant("torchscript-fp32").proof
    assert proof is not None
    assert proof.layers == {"fp32": 11}


@pytest.mark.parametrize("allowed", [True, False])
def test_no_convolution_of_the_file_may_use_tf32_whatever_was_allowed_at_export(tmp_path: Path, allowed: bool) -> None:
    """A trace keeps it as a constant, the last argument: on an H200 files of before answered 3e-4 off, cuDNN in TF32."""
    spec = ModelSpec.named("vgg11", image_size=32, classes=10, hidden=16)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        module = Deployable(new_vgg(spec), PreprocessSpec()).eval()
        export_torchscript(module, tmp_path / "model.pt", image=input_spec(spec))
    finally:
        torch.backends.cudnn.allow_tf32 = before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.jit.load(tmp_path / "model.pt").inlined_graph
    found = graph.findAllNodes("aten::_convolution")
    assert [list(node.inputs())[-1].toIValue() for node in found] == [False] * 8
