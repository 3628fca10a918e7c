"""Fine-tuning beside training from scratch: features of Fashion-MNIST, ten digits of each class, five seeds.

Both arms see the same 100 images (drawn by the seed), with the same recipe and the same number of epochs; the last
epoch's weights count, so no other image decides anything. All 359 test digits are scored. Plain VGG-11 and the one with
batch norm: the second trains so well from scratch that features of clothes need not help it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from measuring import write_result

from vggdeploy.train.loop import train
from vggdeploy.train.recipe import Recipe

SEEDS = 5
T_975 = 2.776  # Student's t for a 95% interval of five differences


def recipes(arch: str, options: argparse.Namespace) -> tuple[Recipe, Recipe]:
    """The one that makes the features, and the one of both arms."""
    common: dict[str, Any] = {"arch": arch, "width": 0.25, "hidden": 512, "dropout": 0.3, "image_size": 32}
    if arch.endswith("_bn"):
        features, digits = {"schedule": "one-cycle", "warmup": 0.25}, {"lr": 0.02, "warmup": 0.1}
    else:  # a plain VGG does not leave the plateau with SGD on so few images
        adam = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01}
        features, digits = {**adam}, {**adam}
    return (
        Recipe(
            dataset="fashion-mnist", per_class=options.images, epochs=options.features, batch_size=128,
            augment=("crop",), **common, **features,
        ),
        Recipe(
            dataset="digits", per_class=10, epochs=options.epochs, batch_size=20, schedule="cosine", keep="last",
            **common, **digits,
        ),
    )  # fmt: skip


def measure(arch: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both arms of one architecture, and the interval of their difference."""
    features, digits = recipes(arch, options)
    found: dict[str, list[float]] = {"scratch": [], "fine_tuned": [], "frozen": []}
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "features"
        first = train(features, output=source).training
        print(f"{arch}: features {first.test_accuracy:.4f} on {features.dataset}, {first.seconds:.0f} s", flush=True)
        arms: dict[str, dict[str, Any]] = {
            "scratch": {},
            "fine_tuned": {"init": str(source)},
            "frozen": {"init": str(source), "freeze": "features"},
        }
        for seed in range(SEEDS):
            for arm, changes in arms.items():
                recipe = msgspec.structs.replace(digits, seed=seed, **changes)
                done = train(recipe, output=Path(directory) / f"{arm}-{seed}").training
                found[arm].append(done.test_accuracy)
            print(f"seed {seed}: " + "  ".join(f"{a} {values[-1]:.4f}" for a, values in found.items()), flush=True)
    points = 100 * (np.array(found["fine_tuned"]) - np.array(found["scratch"]))
    half = T_975 * points.std(ddof=1) / np.sqrt(SEEDS)
    return {
        "features": {"data": "fashion-mnist", "images": first.samples["train"], "test_accuracy": first.test_accuracy},
        "images_a_class": 10,
        "test_images": 359,
        "epochs": options.epochs,
        "test_accuracy": found,
        "difference_points": float(points.mean()),
        "interval_points": [float(points.mean() - half), float(points.mean() + half)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=0, help="of each class of Fashion-MNIST; 0 for all")
    parser.add_argument("--features", type=int, default=6, help="epochs on Fashion-MNIST")
    parser.add_argument("--epochs", type=int, default=30, help="on the digits")
    options = parser.parse_args()
    measured = {arch: measure(arch, options) for arch in ("vgg11", "vgg11_bn")}
    plain = measured["vgg11"]
    low, high = plain["interval_points"]
    target = {
        "what": "vgg11, test accuracy on digits, fine-tuned − from scratch",
        "found": f"{plain['difference_points']:+.2f} points [{low:+.2f}, {high:+.2f}]",
        "target": "> 0, interval included",
        "met": low > 0,
    }
    return write_result("transfer", measured, [target])


if __name__ == "__main__":
    sys.exit(main())
