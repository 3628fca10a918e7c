"""Fashion-MNIST with the classic and the modern recipe, beside the figures of the d2l book's notebooks.

The book trains at 224 pixels for ten epochs on a GPU. On two cores 64 pixels take minutes; `--size 224` the better part
of an hour for each recipe. The test split is only looked at: the modern recipe keeps the epoch with the best validation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import write_result

from vggdeploy.train.loop import train
from vggdeploy.train.recipe_file import BUILT_IN, resolve_recipe
from vggdeploy.train.record import TrainingStep

# Dive into Deep Learning, section 8.2, the PyTorch notebook: VGG-11 at quarter width, 224 px, lr 0.05, batch 128.
D2L = {
    "epochs": 10, "image_size": 224, "train_loss": 0.172, "train_accuracy": 0.936, "test_accuracy": 0.917,
    "images_per_second": 2544.8, "device": "its GPU",
}  # fmt: skip


def show(now: TrainingStep) -> None:
    if now.validation is not None:
        print(
            f"  epoch {now.epoch}/{now.epochs}: loss {now.loss:.3f}, train {now.accuracy:.4f}, test {now.test:.4f}, "
            f"{now.images_per_second:.0f} images/s",
            flush=True,
        )


def measure(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    recipe = resolve_recipe(name, changes)
    print(f"{name} at {recipe.image_size} px, {recipe.epochs} epochs", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        done = train(recipe, output=Path(directory) / "ckpt", on_step=show).training
    return {
        "recipe": name,
        "image_size": recipe.image_size,
        "epochs": len(done.history),
        "train_loss": done.loss,
        "train_accuracy": done.train_accuracy,
        "validation_accuracy": done.validation_accuracy,
        "test_accuracy": done.test_accuracy,
        "test_accuracy_by_epoch": [epoch.test_accuracy for epoch in done.history],
        "images_per_second": done.images_per_second,
        "seconds": done.seconds,
        "precision": done.recipe.precision,
        "device": done.device,
        "threads": done.threads,
        "samples": done.samples,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, action="append", help="pixels; may be given again. Default: 64")
    parser.add_argument("--recipe", action="append", choices=BUILT_IN, help="may be given again. Default: both")
    parser.add_argument("--epochs", type=int, help="default: each recipe's own")
    parser.add_argument("--per-class", type=int, default=0, help="training images of each class; 0 for all")
    options = parser.parse_args()
    runs = []
    for size in options.size or [64]:
        for name in options.recipe or BUILT_IN:
            changes = {"image_size": size, "per_class": options.per_class}
            runs.append(measure(name, changes | ({"epochs": options.epochs} if options.epochs else {})))
    return write_result("fashion", {"runs": runs, "d2l": D2L}, [])


if __name__ == "__main__":
    sys.exit(main())
