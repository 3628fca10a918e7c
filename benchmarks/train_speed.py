"""Training speed beside the textbook loop (NCHW, FP32, the same batches), interleaved; and the accuracy of both.

Speed: quarter-width VGG-11, 1×224×224 from Fashion-MNIST, batch 128. Round by round each loop makes the same number of
steps in a process of its own, one after the other, in an order that turns, so that a machine that slows down slows all
of them. The textbook loop finds its images as ready float tensors; ours prepares them as `vggdeploy train` does, in a
thread beside the network.

Accuracy: the same network, images, order and plain recipe, trained to the end by both, for several seeds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from measuring import write_result
from numpy.typing import NDArray
from torch import nn
from turns import ratio, take_turns

from vggdeploy.data.loaders import ImageSet, ImageStream, open_split, per_class
from vggdeploy.model.deployable import Deployable
from vggdeploy.model.vgg import new_vgg
from vggdeploy.preprocess import normalise
from vggdeploy.system.machine import machine, memory_kept
from vggdeploy.train.feed import Batch, Feed, epoch_batches
from vggdeploy.train.loop import TrainOptions, train
from vggdeploy.train.recipe import Recipe
from vggdeploy.train.recipe_file import resolve_recipe
from vggdeploy.train.step import Stepper, evaluate
from vggdeploy.types import Precision

CPU = torch.device("cpu")
TEXTBOOK = "textbook"
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t for a 95% interval of so many differences


def floats(images: NDArray[np.uint8], recipe: Recipe) -> torch.Tensor:
    return torch.from_numpy(normalise(images, recipe.preprocess()))


def textbook_steps(recipe: Recipe, batches: list[Batch]) -> Iterator[None]:
    """The loop as textbooks write it: float images [N, C, H, W], FP32, SGD."""
    net = new_vgg(recipe.model_spec(), seed=recipe.seed).train()
    # Into new tensors: of one channel, NumPy's strides can be read as channels-last, and torch would compute in that.
    data = [
        (torch.empty(len(b.labels), 1, *b.images.shape[1:3]).copy_(floats(b.images.numpy(), recipe)), b.labels)
        for b in batches
    ]
    assert data[0][0].stride(1) > 1
    optimizer, criterion = torch.optim.SGD(net.parameters(), lr=recipe.lr), nn.CrossEntropyLoss()
    while True:
        for x, y in data:
            optimizer.zero_grad()
            loss = criterion(net(x), y)
            loss.backward()
            optimizer.step()
            loss.item()
            yield


def our_steps(recipe: Recipe, data: ImageSet | ImageStream, precision: Precision) -> Iterator[None]:
    """What `vggdeploy train` does for a step, the preparation of its images included."""
    model = new_vgg(recipe.model_spec(), seed=recipe.seed).to(memory_format=torch.channels_last)
    network = Deployable(model, recipe.preprocess()).train()
    stepper = Stepper(recipe, network, model, steps=10**6, precision=precision, device=CPU)
    while True:
        for batch in Feed(data, recipe, CPU).epoch(0):
            stepper(batch)
            yield


def loop(name: str, options: argparse.Namespace) -> Iterator[Any]:
    """One loop in the process that its user would have: the textbook's is Python as it comes, ours keeps the memory it
    freed, as `vggdeploy train` does."""
    with nullcontext() if name == TEXTBOOK else memory_kept():
        steps = arm(name, options)
        next(steps)
        yield f"{torch.get_num_threads()} threads"
        yield from steps


def arm(name: str, options: argparse.Namespace) -> Iterator[None]:
    """The loop of that name, on four batches of real images."""
    recipe = resolve_recipe("classic", {"image_size": options.size, "batch_size": options.batch})
    data = open_split(recipe.dataset, "train", recipe.preprocess()).take(np.arange(4 * options.batch))
    if name == TEXTBOOK:
        return textbook_steps(recipe, list(Feed(data, recipe, CPU).epoch(0)))
    if name == "compiled":
        return our_steps(msgspec.structs.replace(recipe, compile=True), data, best_precision())
    return our_steps(recipe, data, Precision(name.rpartition("_")[2]))


def best_precision() -> Precision:
    return Precision.BF16 if {"avx512_bf16", "amx_bf16"} & set(machine().features) else Precision.FP32


def textbook_accuracy(recipe: Recipe, data: ImageSet | ImageStream, test: ImageSet | ImageStream) -> float:
    """Train to the end in FP32 and NCHW, on the batches that ours gets."""
    net = new_vgg(recipe.model_spec(), seed=recipe.seed).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    torch.manual_seed(recipe.seed)
    for epoch in range(recipe.epochs):
        for at in epoch_batches(len(data), recipe.batch_size, seed=recipe.seed, epoch=epoch):
            x = floats(data.batch(at), recipe)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), torch.from_numpy(data.labels[at])).backward()
            optimizer.step()
    return evaluate(Deployable(net, recipe.preprocess()), test, device=CPU).accuracy


def accuracies(seeds: int, images: int, precision: Precision) -> dict[str, Any]:
    """Test accuracies of both loops for every seed, and the interval of their difference in points."""
    plain = Recipe(
        dataset="fashion-mnist", width=0.25, hidden=512, epochs=3, batch_size=128, per_class=images,
        schedule="constant", warmup=0.0, label_smoothing=0.0, weight_decay=0.0, keep="last", precision=str(precision),
    )  # fmt: skip
    whole, test = (open_split(plain.dataset, split, plain.preprocess()) for split in ("train", "test"))
    pairs = []
    for seed in range(seeds):
        recipe = msgspec.structs.replace(plain, seed=seed)
        data = whole.take(per_class(whole.labels, images, whole.classes, seed=seed))
        with tempfile.TemporaryDirectory() as directory:
            ours = train(
                recipe, options=TrainOptions(device=None), output=Path(directory) / "ckpt"
            ).training.test_accuracy
        pairs.append((ours, textbook_accuracy(recipe, data, test)))
        print(f"seed {seed}: ours {pairs[-1][0]:.4f}, textbook {pairs[-1][1]:.4f}", flush=True)
    points = np.array([100 * (ours - theirs) for ours, theirs in pairs])
    half = T_975[seeds] * points.std(ddof=1) / np.sqrt(seeds)
    return {
        "network": "vgg11_bn × 0.25 at 32 px",
        "images": 10 * images,
        "epochs": plain.epochs,
        "ours": [p[0] for p in pairs],
        "textbook": [p[1] for p in pairs],
        "difference_points": float(points.mean()),
        "interval_points": [float(points.mean() - half), float(points.mean() + half)],
    }


def at_least(what: str, found: dict[str, float], limit: float) -> dict[str, Any]:
    text = f"{found['median']:.2f} × [{found['low']:.2f}, {found['high']:.2f}]"
    return {"what": what, "found": text, "target": f"≥ {limit:g} ×", "met": found["median"] >= limit}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2, help="of each loop in a round")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=4, choices=sorted(T_975))
    parser.add_argument("--images", type=int, default=1200, help="of each class, for the accuracies")
    parser.add_argument("--compile", action="store_true", help="measure the compiled network too")
    options = parser.parse_args()
    recipe = resolve_recipe("classic", {"image_size": options.size, "batch_size": options.batch})
    has_bf16 = best_precision() is Precision.BF16
    ours = ["channels_last_fp32"] + ["channels_last_bf16"] * has_bf16 + ["compiled"] * options.compile
    found = take_turns(loop, [TEXTBOOK, *ours], options, rounds=options.rounds, steps=options.steps)
    ratios = {name: ratio(found[TEXTBOOK], found[name]) for name in ours}
    accuracy = accuracies(options.seeds, options.images, best_precision())
    measured = {
        "network": recipe.model_spec().title,
        "batch": options.batch,
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "steps_a_round": options.steps,
        "images_per_second": {name: options.batch / float(np.median(values)) for name, values in found.items()},
        "ratio_to_textbook": ratios,
        "accuracy": accuracy,
    }
    low, high = accuracy["interval_points"]
    targets = [at_least("FP32 channels-last beside the textbook loop", ratios["channels_last_fp32"], 1.5)]
    if has_bf16:
        targets.append(at_least("bf16 channels-last beside the textbook loop", ratios["channels_last_bf16"], 3.4))
    targets.append(
        {
            "what": "final accuracy, ours − textbook",
            "found": f"{accuracy['difference_points']:+.2f} points [{low:+.2f}, {high:+.2f}]",
            "target": "0 within the interval",
            "met": low <= 0 <= high,
        }
    )
    return write_result("train_speed", measured, targets)


if __name__ == "__main__":
    sys.exit(main())
