"""Fine-tuning beside training from scratch: features of Fashion-MNIST, ten digits of each class, five seeds.

Both arms see the same 100 images (drawn by the seed), with the same recipe and the same number of epochs; the last
epoch's weights count, so no other image decides anything. All 359 test digits are scored.
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


def recipes(epochs: int, images: int) -> tuple[Recipe, Recipe]:
    """The one that makes the features, and the one of both arms."""
    features = Recipe(
        dataset="fashion-mnist", width=0.25, hidden=512, dropout=0.3, image_size=32, per_class=images, epochs=4,
        batch_size=128, schedule="one-cycle", warmup=0.25, augment=("crop",),
    )  # fmt: skip
    digits = Recipe(
        dataset="digits", width=0.25, hidden=512, dropout=0.3, image_size=32, per_class=10, epochs=epochs,
        batch_size=20, lr=0.02, schedule="cosine", warmup=0.1, keep="last",
    )  # fmt: skip
    return features, digits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="of each class of Fashion-MNIST; 0 for all")
    parser.add_argument("--epochs", type=int, default=30, help="on the digits")
    options = parser.parse_args()
    features, digits = recipes(options.epochs, options.images)
    found: dict[str, list[float]] = {"scratch": [], "fine_tuned": [], "frozen": []}
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "features"
        first = train(features, output=source).training
        print(f"features: {first.test_accuracy:.4f} on {features.dataset}, {first.seconds:.0f} s", flush=True)
        arms: dict[str, dict[str, Any]] = {
            "scratch": {},
            "fine_tuned": {"init": str(source), "lr_features": digits.lr / 4},
            "frozen": {"init": str(source), "freeze": "features"},
        }
        for seed in range(SEEDS):
            for arm, changes in arms.items():
                recipe = msgspec.structs.replace(digits, seed=seed, **changes)
                done = train(recipe, output=Path(directory) / f"{arm}-{seed}").training
                found[arm].append(done.test_accuracy)
            print(f"seed {seed}: " + "  ".join(f"{arm} {values[-1]:.4f}" for arm, values in found.items()), flush=True)
    points = 100 * (np.array(found["fine_tuned"]) - np.array(found["scratch"]))
    half = T_975 * points.std(ddof=1) / np.sqrt(SEEDS)
    low, high = float(points.mean() - half), float(points.mean() + half)
    measured = {
        "features": {"data": "fashion-mnist", "images": first.samples["train"], "test_accuracy": first.test_accuracy},
        "images_a_class": 10,
        "test_images": 359,
        "epochs": options.epochs,
        "test_accuracy": found,
        "difference_points": float(points.mean()),
        "interval_points": [low, high],
    }
    target = {
        "what": "test accuracy on digits, fine-tuned − from scratch",
        "found": f"{points.mean():+.2f} points [{low:+.2f}, {high:+.2f}]",
        "target": "> 0, interval included",
        "met": low > 0,
    }
    return write_result("transfer", measured, [target])


if __name__ == "__main__":
    sys.exit(main())
