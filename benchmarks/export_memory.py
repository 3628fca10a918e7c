"""Peak memory of exporting a full network, proof included, from a checkpoint and from a file of somebody else's weights."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from measuring import run_process, target, write_result

from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.model.layers import summarise
from vggdeploy.model.vgg import new_vgg
from vggdeploy.model.weights import save_checkpoint
from vggdeploy.spec import ModelSpec, PreprocessSpec

LIMIT = 3.5  # × the weights, on a machine of two cores


def make(home: Path, arch: str) -> dict[str, Path]:
    """A checkpoint and a ``.pth`` with fresh weights: what they compute does not matter for the memory."""
    import torch

    spec = ModelSpec.named(arch)
    model = new_vgg(spec)
    labels = tuple(f"class {i}" for i in range(spec.classes))
    save_checkpoint(home / arch, model, Checkpoint(spec=spec, preprocess=PreprocessSpec(), labels=labels))
    torch.save(model.state_dict(), home / f"{arch}.pth")
    return {"checkpoint": home / arch, "pth": home / f"{arch}.pth"}


def main() -> int:
    measured: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        for arch in ("vgg16", "vgg16_bn"):
            weights = 4 * summarise(ModelSpec.named(arch)).parameters
            for kind, source in make(home, arch).items():
                print(f"{arch}, {kind} …", flush=True)
                done = run_process(
                    [sys.executable, "-m", "vggdeploy", "export", source, "-o", home / "bundle", "--force"]
                )
                measured[f"{arch} from {kind}"] = {
                    "peak_bytes": done.peak_bytes,
                    "weights_bytes": weights,
                    "peak_over_weights": done.peak_bytes / weights,
                }
    targets = [
        target(f"peak memory of export and parity, {name}", row["peak_over_weights"], LIMIT, "× its weights")
        for name, row in measured.items()
    ]
    return write_result("export_memory", measured, targets)


if __name__ == "__main__":
    sys.exit(main())
