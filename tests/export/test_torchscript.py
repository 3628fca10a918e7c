"""The exported TorchScript, loaded without any class of ours."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from vggdeploy.bundle import Bundle

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
