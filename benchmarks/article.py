"""The article's own job: VGG-11 at quarter width, Xavier, SGD 0.05, batch 128, Fashion-MNIST at 224 px, all 60,000 images.

Dive into Deep Learning (section 8.2) trains it for 4 epochs in the text and for 10 in its published notebook: 0.917 of the test
images. The learning rate is constant, so the fourth epoch of the long run is the end of the short one. `textbook` is our recipe
of that name in the precision that is fastest here; `fast` is our own recipe on the same pixels. The textbook's loop, NCHW and
FP32, makes the same steps at another speed, so what it is measured for, in turns with ours, is images/s.

An epoch takes some ten minutes on two cores: `--max-steps 4 --max-images 200` shows in a minute or two that all of it works.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measuring import write_result
from train_speed import TEXTBOOK, best_precision, loop
from turns import ratio, take_turns

from vggdeploy.system.machine import memory_kept
from vggdeploy.train.loop import train
from vggdeploy.train.recipe_file import resolve_recipe
from vggdeploy.train.record import TrainingStep

PUBLISHED = {
    "epochs": 10,
    "test_accuracy": 0.917,
    "train_accuracy": 0.936,
    "images_per_second": 2544.8,
    "device": "its GPU",
}
ARMS = ("textbook", "fast")


def one(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one arm on all training images, none held out; the test images are scored after every epoch."""
    changes = {
        "image_size": options.size, "epochs": options.epochs, "batch_size": 128, "seed": options.seed, "precision": "auto",
        "hold_out": False, "normalise": False, "max_steps": options.max_steps, "max_images": options.max_images,
    }  # fmt: skip
    curve: list[dict[str, Any]] = []

    def show(now: TrainingStep) -> None:
        for point in now.points:
            curve.append({"step": point.step, "split": point.split, "loss": point.loss, "accuracy": point.accuracy})
            print(f"{arm}: " + "  ".join(f"{key} {value}" for key, value in curve[-1].items()), flush=True)

    with memory_kept(), tempfile.TemporaryDirectory() as directory:
        done = train(resolve_recipe(arm, changes), output=Path(directory) / "ckpt", on_step=show).training
    return {
        "recipe": done.recipe,
        "samples": done.samples,
        "images_per_second": done.images_per_second,
        "seconds": done.seconds,
        "test_accuracy_by_epoch": [epoch.test_accuracy for epoch in done.history],
        "train_accuracy_by_epoch": [epoch.train_accuracy for epoch in done.history],
        "curve": curve,
    }


def speeds(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second of the textbook's loop and of ours, in turns."""
    ours = f"channels_last_{best_precision()}"
    turns = argparse.Namespace(size=options.size, batch=128)
    found = take_turns(loop, [TEXTBOOK, ours], turns, rounds=options.rounds, steps=1)
    return {
        "images_per_second": {name: 128 / float(np.median(values)) for name, values in found.items()},
        "ours_over_textbook": ratio(found[TEXTBOOK], found[ours]),
        "rounds": options.rounds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", action="append", choices=ARMS, help="may be given again. Default: both")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=8, help="of the comparison of speeds; 0 leaves it out")
    parser.add_argument(
        "--max-steps", type=int, default=0, help="end each arm after so many steps: a short try, not the job"
    )
    parser.add_argument("--max-images", type=int, default=0, help="take so many images of each split: a short try, too")
    options = parser.parse_args()
    measured: dict[str, Any] = {"published": PUBLISHED, "arms": {}}
    if options.rounds:
        measured["speed"] = speeds(options)
    for arm in options.arm or ARMS:
        measured["arms"][arm] = one(arm, options)
    if options.max_steps or options.max_images:
        print("a short try: nothing is written")
        return 0
    targets = []
    if "textbook" in measured["arms"]:
        last = measured["arms"]["textbook"]["test_accuracy_by_epoch"][-1]
        targets.append(
            {
                "what": f"textbook, {options.epochs} epochs at {options.size} px, one seed",
                "found": f"{last:.4f}",
                "target": f"≥ {PUBLISHED['test_accuracy']} after {PUBLISHED['epochs']}",
                "met": last >= PUBLISHED["test_accuracy"],
            }
        )
    return write_result("article", measured, targets, command=" ".join(["article.py", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
