"""The exported program, loaded without any class of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vggdeploy.bundle import Bundle
from vggdeploy.errors import BundleError
from vggdeploy.export.bundle import ExportOptions, export_bundle
from vggdeploy.runtime import open_session
from vggdeploy.types import Verdict

_LOAD = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
images = torch.from_numpy(np.load(sys.argv[2]))
(logits,) = torch.export.load(sys.argv[1]).module()(images)
np.save(sys.argv[3], logits.detach().numpy())
assert not any(name.startswith("vggdeploy") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def program_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    options = ExportOptions(formats=["torch-export-fp32"], samples=50)
    return export_bundle(checkpoint, tmp_path_factory.mktemp("program") / "bundle", options)


def test_it_is_proven(program_bundle: Bundle) -> None:
    variant = program_bundle.manifest.variant("torch-export-fp32")
    assert variant.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE)
    assert variant.proof is not None
    assert variant.proof.layers == {"fp32": 11}


def test_it_runs_where_vggdeploy_is_not_imported(program_bundle: Bundle, tmp_path: Path) -> None:
    model = program_bundle.path("variants/torch-export-fp32/model.pt2")
    inputs = program_bundle.path("golden/inputs/image.npy")
    command = [sys.executable, "-c", _LOAD, str(model), str(inputs), str(tmp_path / "out.npy")]
    subprocess.run(command, check=True, cwd=tmp_path)
    found = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(found, program_bundle.golden()[1]["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 7, 256])
def test_every_batch_size_is_the_reference(program_bundle: Bundle, batch: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 1), dtype=np.uint8)
    with (
        open_session(program_bundle, program_bundle.manifest.variant("torch-export-fp32")) as session,
        open_session(program_bundle, program_bundle.manifest.reference()) as reference,
    ):
        found, wanted = (each.run({"image": images})["logits"] for each in (session, reference))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_program_that_this_pytorch_does_not_know_is_one_line(
    program_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._export.serde.serialize.SCHEMA_VERSION", (99, 0))
    with (
        pytest.raises(BundleError, match=r"cannot open model\.pt2"),
        open_session(program_bundle, program_bundle.manifest.variant("torch-export-fp32")),
    ):
        pass
