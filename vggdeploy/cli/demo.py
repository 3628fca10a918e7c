"""``vggdeploy demo``: the whole way on real images, in one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy.cli import render
from vggdeploy.cli.options import Threads
from vggdeploy.cli.render import escape
from vggdeploy.errors import IncompatibleError, TargetError

if TYPE_CHECKING:
    from vggdeploy.bundle import Bundle


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the checkpoint, the bundle and sample images go.")
    ] = Path("artifacts/demo"),
    epochs: Annotated[int, typer.Option(help="Training epochs.")] = 6,
    seconds: Annotated[float, typer.Option(help="Measuring time per variant and batch size, in seconds.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of weights and data order.")] = 0,
    threads: Threads = None,
) -> int:
    """Train on the digits, export, build an FP16 engine, prove, measure, and classify: two minutes, no GPU, no network."""
    return run(output, epochs=epochs, seconds=seconds, seed=seed, threads=threads)


DATASET = "digits"
IMAGE_SIZE = 32
TARGET_ACCURACY = 0.97
IMAGES = 10


def run(output: Path, *, epochs: int, seconds: float, seed: int, threads: int | None) -> int:
    """Run the demo into ``output``: ``checkpoint``, ``bundle`` and ``images``. Returns the exit code.

    Raises:
        TargetError: the model learned less than it should.
    """
    from vggdeploy.cli import tables

    start = time.monotonic()
    checkpoint, target = output / "checkpoint", output / "bundle"
    _heading(1, f"train vgg11_bn, quarter width, on {DATASET}")
    accuracy = _train(checkpoint, epochs=epochs, seed=seed, threads=threads)
    _heading(2, "export ONNX and TorchScript, each proven against the FP32 model")
    bundle = _export(checkpoint, target, threads)
    _heading(3, "build an FP16 TensorRT engine")
    bundle = _build(bundle)
    _heading(4, "verify: every variant, from its shipped bytes")
    code = _verify(bundle, threads)
    _heading(5, "bench: the variants beside each other")
    bundle = _bench(bundle, seconds=seconds, threads=threads)
    _heading(6, "predict: an engine without torch")
    image = _predict(bundle, output / "images")
    render.out.print(f"\n[bold]bundle:[/] {escape(str(target))}   [dim]{time.monotonic() - start:.0f} s in all[/]")
    tables.bundle_table(bundle)
    render.next_steps(
        f"vggdeploy inspect {target}",
        f"vggdeploy predict {target} {image}",
        "vggdeploy train --arch vgg16_bn --width 0.25 --dataset fashion-mnist --image-size 64 -o artifacts/fashion",
        "vggdeploy doctor",
    )
    if accuracy < TARGET_ACCURACY:
        raise TargetError(
            f"test accuracy {accuracy:.2%} is below {TARGET_ACCURACY:.0%}", "train longer: vggdeploy demo --epochs 12"
        )
    return code


def _heading(step: int, text: str) -> None:
    render.out.print(f"\n[bold cyan]{step}/6[/] [bold]{text}[/]")


def _train(checkpoint: Path, *, epochs: int, seed: int, threads: int | None) -> float:
    from vggdeploy.cli import train
    from vggdeploy.train.recipe import Recipe

    recipe = Recipe(
        arch="vgg11_bn", width=0.25, hidden=512, dataset=DATASET, image_size=IMAGE_SIZE, epochs=epochs, seed=seed
    )
    result = train.run(recipe, checkpoint, overwrite=True, threads=threads)
    train.print_summary(result)
    tested = result.training.test_accuracy
    assert tested is not None  # noqa: S101  # for mypy: a run on a data set looks at its test split
    return tested


def _export(checkpoint: Path, target: Path, threads: int | None) -> Bundle:
    from vggdeploy.bundle.checkpoint import read_checkpoint
    from vggdeploy.cli import tables
    from vggdeploy.cli.export import name_of
    from vggdeploy.export.bundle import ExportOptions, export_bundle

    with render.progress("starting") as tell:
        options = ExportOptions(overwrite=True, threads=threads, name=name_of(target, read_checkpoint(checkpoint)))
        bundle = export_bundle(checkpoint, target, options, on_progress=tell)
    tables.bundle_table(bundle)
    return bundle


def _build(bundle: Bundle) -> Bundle:
    from vggdeploy.build.request import BuildPlan
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli.build import run_build, show_engine
    from vggdeploy.types import Precision

    try:
        show_engine(run_build(bundle, BuildPlan(engine="tensorrt-rtx", precision=Precision.FP16)))
    except IncompatibleError as error:  # installed without the extra: everything else still works
        render.out.print(f"[yellow]skipped:[/] {escape(error.cause)}\n  [dim]{escape(error.hint)}[/]")
    return Bundle.open(bundle.root)


def _verify(bundle: Bundle, threads: int | None) -> int:
    from vggdeploy.cli import tables
    from vggdeploy.verify.verify import VerifyOptions, exit_code, verify_bundle

    with render.progress("starting") as tell:
        report = verify_bundle(bundle, VerifyOptions(threads=threads), on_progress=tell)
    tables.parity_table(report)
    return exit_code(report)


def _bench(bundle: Bundle, *, seconds: float, threads: int | None) -> Bundle:
    from vggdeploy.bench.run import BenchPlan, bench_bundle
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import tables

    with render.progress("measuring") as tell:
        plan = BenchPlan(seconds=seconds)
        report = bench_bundle(bundle, plan=plan, threads=threads, record=True, on_progress=tell)
    tables.bench_table(report, bundle)
    return Bundle.open(bundle.root)


def _predict(bundle: Bundle, directory: Path) -> Path:
    """Classify real test images from files; returns the first one's path."""
    from PIL import Image

    from vggdeploy.cli import tables
    from vggdeploy.data.loaders import load_split
    from vggdeploy.data.sources import get_dataset
    from vggdeploy.engine.engine import load
    from vggdeploy.engine.selection import choices
    from vggdeploy.spec import PreprocessSpec

    size = get_dataset(DATASET).size
    raw = load_split(
        DATASET, "test", PreprocessSpec(mode="L", resize=size, crop=size, mean=(0.0,), std=(1.0,)), limit=IMAGES
    )
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{index:02d}-is-{label}.png" for index, label in enumerate(raw.labels)]
    with load(bundle.root) as engine:
        chosen = f"{engine.variant.name} on {engine.device}: {choices(bundle)[0].reason}"
        render.sentence(f"[dim]{escape(chosen)}[/]")
        for path, pixels in zip(paths, raw.images, strict=True):
            Image.fromarray(pixels[..., 0]).save(path)
        for path in paths[:3]:
            tables.prediction_line(str(path), engine.classify(path, top=3))
    return paths[0]
