"""``vggdeploy demo``: the whole way on real images, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.options import Threads


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the checkpoint, the bundle and sample images go.")
    ] = Path("artifacts/demo"),
    epochs: Annotated[int, typer.Option("--epochs", help="Training epochs.")] = 6,
    seconds: Annotated[float, typer.Option("--seconds", help="Measuring time a variant and batch size.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of weights and data order.")] = 0,
    threads: Threads = None,
) -> int:
    """Train on the digits, export, build an FP16 engine, prove, measure, and classify: two minutes, no GPU, no network."""
    from vggdeploy.cli import demo_steps

    return demo_steps.run(output, epochs=epochs, seconds=seconds, seed=seed, threads=threads)
