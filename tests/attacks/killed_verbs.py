"""Every verb that writes, on the smallest network and a few images: what `killing` kills, and what it is given.

    python killed_verbs.py DIRECTORY KILLS [VERB…]

kills each verb that often, in a process of its own since it forks, and prints what became of it as JSON, one verb a line.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from attacks.killed_server import ServerKiller
from attacks.killing import Count, Home, Killer, Verb, whole
from attacks.whole_files import half_written
from PIL import Image

_SMALL = ("--blocks", "1x4,1x8", "--hidden", "16", "--image-size", "8", "--epochs", "1", "--per-class", "10")
_EMBED = ("embed", "bundle", "images", "--output", "logits", "--force", "--threads", "1")
_FAST = ("--samples", "20", "--threads", "1")

# The bundle that is written stands there already, except where the verb's name says "new".
VERBS = (
    Verb("train", ("train", "-o", "checkpoint", *_SMALL, "--dropout", "0", "--force", "--threads", "1"), 1),
    Verb("train-new", ("train", "-o", "new", *_SMALL, "--dropout", "0", "--force", "--threads", "1"), 1),
    Verb("export", ("export", "checkpoint", "-o", "bundle", "--force", *_FAST), 0.6),
    Verb("export-new", ("export", "checkpoint", "-o", "new-bundle", "--force", "--formats", "onnx-fp32", *_FAST), 0.8),
    Verb("export-weights", ("export", "foreign.pth", "-o", "imported", "--force", "--formats", "onnx-fp32",
                            "--blocks", "1x4,1x8", "--threads", "1", "--mean", "0.5", "--std", "0.5"), 0.8),
    Verb("optimize-int8", ("optimize", "bundle", "--step", "int8", *_FAST, "--calibration-images", "32"), 0.6),
    Verb("optimize-openvino", ("optimize", "bundle", "--step", "openvino-fp32", *_FAST), 0.6),
    Verb("optimize-prune", ("optimize", "checkpoint", "-o", "pruned", "--step", "prune", "--keep", "0.5", "--epochs", "1",
                            "--force"), 0.3),
    Verb("build", ("build", "bundle", "--target", "sm89", "--opt-level", "0"), 0.3),
    Verb("verify-record", ("verify", "bundle", "--record", *_FAST), 1.5),
    Verb("bench-record", ("bench", "bundle", "--record", "--variant", "onnx-fp32", "--batch", "1", "--seconds", "0.05",
                          "--rounds", "3", "--threads", "1"), 0.3),
    Verb("embed-npy", (*_EMBED, "-o", "vectors.npy"), 6),
    Verb("embed-parquet", (*_EMBED, "-o", "vectors.parquet"), 6),
    Verb("evaluate", ("evaluate", "bundle", "-o", "scores", "--force", *_FAST), 0.8),
    Verb("curves", ("curves", "checkpoint", "-o", "curves"), 0.4),
    Verb("report", ("report", "verify.json", "-o", "report.html"), 0.4),
    Verb("package-slim", ("package", "bundle", "--target", "slim", "-o", "slim", "--variant", "onnx-fp32", "--force"), 5),
    Verb("package-triton", ("package", "bundle", "--target", "triton", "-o", "triton", "--variant", "onnx-fp32", "--force"), 5),
    Verb("package-oci", ("package", "bundle", "--target", "oci", "-o", "oci", "--variant", "onnx-fp32", "--force"), 5),
    Verb("package-cpp", ("package", "bundle", "--target", "cpp", "-o", "cpp", "--variant", "onnx-fp32", "--force"), 5),
    Verb("package-kserve", ("package", "bundle", "--target", "kserve", "-o", "kserve", "--variant", "onnx-fp32",
                            "--image", "registry.example/vgg:1", "--force"), 2),
    Verb("package-mlflow", ("package", "bundle", "--target", "mlflow", "-o", "mlflow", "--variant", "onnx-fp32", "--force"), 2),
    Verb("package-bentoml", ("package", "bundle", "--target", "bentoml", "-o", "bento", "--variant", "onnx-fp32",
                             "--force"), 2),
    Verb("nearest", ("nearest", "bundle", "collection.npy", "images/00.png", "-o", "nearest.html", "--threads", "1"), 2),
    Verb("predict-explain", ("predict", "bundle", "images/00.png", "--explain", "why", "--threads", "1"), 1),
    Verb("sign", ("sign", "bundle", "--key", "key.pem"), 7),
)  # fmt: skip

# Servers of one process, and of two workers, killed while they reload.
RELOADS = (Verb("reload-1", (), 2), Verb("reload-2", (), 0.2))


def prepare(work: Path) -> Path:
    """What the verbs are given: a checkpoint, a bundle, images, a result, a key, and weights from elsewhere."""
    home = Home(work / "prepare")
    (work / "nothing").mkdir()
    home.make(work / "nothing")
    _images(home.work / "images")
    whole(VERBS[0].arguments, home)
    _foreign(home.work)
    whole(("export", "checkpoint", "-o", "bundle", *_FAST), home)
    whole(("verify", "bundle", "--json", *_FAST), home)
    said = home.log.read_text()  # with what it said to people
    result, _ = json.JSONDecoder().raw_decode(said[said.index("{") :])
    (home.work / "verify.json").write_text(json.dumps(result))
    whole((*_EMBED, "-o", "collection.npy"), home)
    whole(("sign", "bundle", "--new-key", "key.pem"), home)
    whole(("package", "bundle", "--target", "slim", "-o", "other", "--variant", "onnx-fp32"), home)
    given = work / "given"
    home.work.rename(given)
    return given


def _images(directory: Path) -> None:
    directory.mkdir()
    noise = np.random.default_rng(0)
    for number in range(24):
        Image.fromarray(noise.integers(0, 256, (20, 24, 3), np.uint8)).save(directory / f"{number:02}.png")


def _foreign(work: Path) -> None:
    import safetensors.torch  # not to be loaded before a fork whose child computes: only read here
    import torch

    torch.save(safetensors.torch.load_file(work / "checkpoint" / "model.safetensors"), work / "foreign.pth")


def count(verb: Verb, given: Path, work: Path, *, kills: int, seed: int) -> Count:
    """Kill one verb that often, and count what became of it."""
    if verb in RELOADS:
        return ServerKiller(given, work, workers=RELOADS.index(verb) + 1, seed=seed).rounds(kills)
    return Killer(verb, given, work, judge=half_written, seed=seed).rounds(kills)


def main(work: Path, kills: int, names: list[str]) -> None:
    given = prepare(work)
    for verb in (*VERBS, *RELOADS):
        if not names or verb.name in names:
            print(json.dumps(dataclasses.asdict(count(verb, given, work, kills=kills, seed=1))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
