"""Choices of `vggdeploy optimize --step prune` and `--step low-rank`, each beside what else could have been chosen.

Fashion-MNIST at 32 px, quarter-width VGG-11 with batch norm and without, some thousand training images. Decisions are made
on the validation split; the test split is reported. And convolutions as products of two: how fast they are beside narrower
ones with as many multiply-accumulates.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch_pruning as tp
from measuring import write_result
from onnx import helper

from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.model.vgg import VGG
from vggdeploy.model.weights import load_model, save_checkpoint
from vggdeploy.optimize.held_out import HeldOut
from vggdeploy.optimize.steps.activations import blind_answers, measure_answers, recalibrate
from vggdeploy.optimize.steps.low_rank import choose_ranks, factorise
from vggdeploy.optimize.steps.prune import measure_sensitivity, prune, taylor_scores
from vggdeploy.optimize.steps.structure import SCORED, SENSED, low_rank_checkpoint, prune_checkpoint
from vggdeploy.optimize.steps.widths import Widths, allocate, macs_of, widths_of, with_widths
from vggdeploy.optimize.tuning import Tuning, TuningJob
from vggdeploy.records import StepRecord
from vggdeploy.train.loop import train
from vggdeploy.train.recipe import Recipe

KEEPS = (0.5, 0.33, 0.25, 0.15)
# Convolutions of a VGG at 64 and 224 px: channels, and the side of the map.
CONVS = ((64, 112), (128, 56), (256, 28), (512, 14), (256, 8), (512, 4))


def base(arch: str, options: argparse.Namespace) -> Recipe:
    common: dict[str, Any] = {"dataset": "fashion-mnist", "arch": arch, "width": 0.25, "hidden": 512, "dropout": 0.3}
    common |= {"per_class": options.images, "epochs": options.epochs, "batch_size": 64}
    if arch.endswith("_bn"):
        return Recipe(**common, schedule="one-cycle", warmup=0.25, lr=0.1)
    return Recipe(**common, optimizer="adamw", lr=1e-3, weight_decay=0.01)


def magnitudes(model: VGG) -> dict[str, torch.Tensor]:
    """Torch-Pruning's norm of all weights of a channel, in every layer that it runs through."""
    spec = model.spec
    example = torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size)
    graph = tp.DependencyGraph().build_dependency(model.requires_grad_(True), example_inputs=example)
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))][:-1]
    found = {}
    for (name, width), layer in zip(widths_of(spec).items(), layers, strict=True):
        cut = tp.prune_conv_out_channels if isinstance(layer, torch.nn.Conv2d) else tp.prune_linear_out_channels
        group = graph.get_pruning_group(layer, cut, idxs=list(range(width)))
        found[name] = tp.importance.GroupMagnitudeImportance(p=2)(group).detach().double()
    return found


def uniform(model: VGG, keep: float) -> Widths:
    """The same share of every layer's channels, so that the multiply-accumulates are at most ``keep``."""
    own = widths_of(model.spec)
    for share in np.linspace(1, 0.05, 400):
        widths = {name: max(1, round(share * width)) for name, width in own.items()}
        if macs_of(with_widths(model.spec, widths)) <= keep * macs_of(model.spec):
            return widths
    raise SystemExit("no share is small enough")


def tuned(root: Path, cut: VGG, options: argparse.Namespace) -> dict[str, float]:
    """Accuracy of a cut network after the fine-tuning that the step does."""
    about = read_checkpoint(root)
    with tempfile.TemporaryDirectory() as directory:
        save_checkpoint(Path(directory) / "cut", cut, msgspec.structs.replace(about, spec=cut.spec))
        recipe = Recipe(
            dataset=about.dataset, arch="init", init=f"{directory}/cut", distill=str(root), keep="last", lr=0.01,
            warmup=0.1, epochs=options.tune, per_class=options.images, batch_size=64,
        )  # fmt: skip
        done = train(recipe, output=Path(directory) / "tuned").training
    return {"validation": done.validation_accuracy, "test": done.test_accuracy}


def of_step(step: StepRecord) -> dict[str, Any]:
    drop = {
        split: {"points": 100 * d.drop, "interval": [100 * d.lower, 100 * d.upper], "images": d.samples}
        for split, d in step.drop.items()
    }
    return {
        "macs": step.after.macs / step.before.macs,
        "parameters": step.after.parameters / step.before.parameters,
        "untuned": step.untuned,
        "accuracy": step.accuracy,
        "drop_against_original": drop,
    }


def choices(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Which channels, and how many of each layer: what is done beside a norm of weights, and beside equal shares."""
    model = load_model(root)
    data = HeldOut.of(read_checkpoint(root))
    taylor = taylor_scores(model, data.batches("train", SCORED))
    norms = magnitudes(load_model(root))
    rises = {
        name: measure_sensitivity(model, scores, data.batches("validation", SENSED), ratios=(0.5,))
        for name, scores in (("taylor", taylor), ("norm of weights", norms))
    }
    found: dict[str, Any] = {
        "loss_rise_at_half_of_one_layer": {
            name: float(np.mean([next(iter(r.values())) for r in rise.values()])) for name, rise in rises.items()
        }
    }
    for keep in options.keep or (0.5, 0.25):
        with tempfile.TemporaryDirectory() as directory:
            job = TuningJob(tuning=Tuning(epochs=options.tune))
            step = prune_checkpoint(root, Path(directory) / "pruned", keep, job=job)
            labels = TuningJob(tuning=Tuning(epochs=options.tune, distill=""))
            plain = prune_checkpoint(root, Path(directory) / "labels", keep, job=labels)
            product = low_rank_checkpoint(root, Path(directory) / "product", keep=keep, job=job)
        widths = {**widths_of(model.spec), **step.widths}
        arms = {
            "pruned": step.accuracy,
            "low rank": product.accuracy,
            "norm of weights": tuned(root, prune(model, widths, norms), options),
            "equal shares": tuned(root, prune(model, uniform(model, keep), taylor), options),
            "without a teacher": plain.accuracy,
        }
        found[f"keep {keep:g}"] = {**of_step(step), "accuracy_of": arms}
        print(f"keep {keep}: {arms}", flush=True)
    return found


def ranks(root: Path) -> dict[str, Any]:
    """Validation accuracy with so many multiply-accumulates left, without fine-tuning (batch norms measured anew):
    directions of the answers beside those of the matrices alone, and beside fewer channels."""
    model, data = load_model(root), HeldOut.of(read_checkpoint(root))
    spreads = {
        "answers": measure_answers(model, (images for images, _ in data.batches("train", 2048))),
        "matrices alone": blind_answers(model),
    }
    scores = taylor_scores(model, data.batches("train", SCORED))
    sensitivity = measure_sensitivity(model, scores, data.batches("validation", SENSED))
    found: dict[str, Any] = {}
    for keep in KEEPS:
        small = {"channels": prune(model, allocate(model.spec, sensitivity, keep), scores)}
        for name, answers in spreads.items():
            spectra = {layer: torch.linalg.eigvalsh(a.spread).numpy() for layer, a in answers.items()}
            small[name] = factorise(model, choose_ranks(model.spec, spectra, keep), answers)
        for network in small.values():
            recalibrate(network, data.batches("train", SCORED))
        found[f"{keep:g}"] = {name: float(data.hits(network)["validation"].mean()) for name, network in small.items()}
        print(f"keep {keep:g}: {found[f'{keep:g}']}", flush=True)
    return found


def chain(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both steps, one after the other."""
    with tempfile.TemporaryDirectory() as directory:
        job = TuningJob(tuning=Tuning(epochs=options.tune, distill=str(root)))
        first = prune_checkpoint(root, Path(directory) / "pruned", 0.5, job=job)
        second = low_rank_checkpoint(Path(directory) / "pruned", Path(directory) / "small", keep=0.5, job=job)
        return {
            "prune": of_step(first),
            "low_rank": of_step(second),
            "bytes": [first.before.bytes, second.after.bytes],
            "macs": [first.before.macs, second.after.macs],
        }


def conv_graph(channels: int, kernels: list[tuple[int, int, tuple[int, int]]], side: int) -> bytes:
    """Convolutions one after the other, with a ReLU at the end."""
    nodes, weights, tensor = [], [], "x"
    random = np.random.default_rng(0)
    for i, (before, after, kernel) in enumerate(kernels):
        values = random.normal(0, 0.05, (after, before, *kernel)).astype(np.float32)
        weights += [onnx.numpy_helper.from_array(values, f"w{i}")]
        pads = [k // 2 for k in kernel] * 2
        nodes.append(helper.make_node("Conv", [tensor, f"w{i}"], [f"c{i}"], pads=pads))
        tensor = f"c{i}"
    nodes.append(helper.make_node("Relu", [tensor], ["y"]))
    graph = helper.make_graph(
        nodes, "conv",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, channels, side, side])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, kernels[-1][1], side, side])],
        weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def convolutions(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A 3×3 convolution as 3×1 and 1×3 of half the channels (a third of the multiply-accumulates), and a 3×3 one of
    as few: milliseconds in ONNX Runtime, interleaved, one image."""
    import time

    found = []
    for channels, side in CONVS:
        half, narrow = channels // 2, max(8, round(channels / 3**0.5 / 8) * 8)
        forms = {
            "whole": [(channels, channels, (3, 3))],
            "product": [(channels, half, (3, 1)), (half, channels, (1, 3))],
            "narrow": [(narrow, narrow, (3, 3))],
        }
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        sessions = {
            name: ort.InferenceSession(conv_graph(kernels[0][0], kernels, side), settings, ["CPUExecutionProvider"])
            for name, kernels in forms.items()
        }
        feeds = {name: {"x": np.ones((1, kernels[0][0], side, side), np.float32)} for name, kernels in forms.items()}
        times: dict[str, list[float]] = {name: [] for name in forms}
        for turn in range(options.turns):
            for name, session in sessions.items():
                start = time.perf_counter()
                session.run(None, feeds[name])
                if turn >= 5:
                    times[name].append(1000 * (time.perf_counter() - start))
        median = {name: float(np.median(values)) for name, values in times.items()}
        found.append({
            "channels": channels, "side": side, "ms": median, "product": median["product"] / median["whole"],
            "narrow": median["narrow"] / median["whole"], "narrow_macs": (narrow / channels) ** 2, "product_macs": 1 / 3,
        })  # fmt: skip
        print(found[-1], flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500, help="training images of each class; 0 for all")
    parser.add_argument("--epochs", type=int, default=8, help="of the original")
    parser.add_argument("--arch", action="append", help="may be given again. Default: vgg11_bn and vgg11")
    parser.add_argument("--keep", type=float, action="append", help="may be given again. Default: 0.5 and 0.25")
    parser.add_argument("--tune", type=int, default=3, help="epochs of fine-tuning")
    parser.add_argument("--turns", type=int, default=60, help="runs of each convolution")
    options = parser.parse_args()
    measured: dict[str, Any] = {"options": vars(options), "convolutions": convolutions(options)}
    for arch in options.arch or ("vgg11_bn", "vgg11"):
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory) / "trained"
            done = train(base(arch, options), output=root).training
            print(f"{arch}: {done.test_accuracy:.4f}, {done.seconds:.0f} s", flush=True)
            measured[arch] = {
                "accuracy": {"validation": done.validation_accuracy, "test": done.test_accuracy},
                "ranks": ranks(root),
                "choices": choices(root, options),
                "chain": chain(root, options),
            }
    return write_result("structure", measured, [])


if __name__ == "__main__":
    sys.exit(main())
