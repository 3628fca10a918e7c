"""What steps did to a network's structure, beside the network that was trained."""

from __future__ import annotations

from rich.markup import escape

from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.cli.render import out, size_text, table
from vggdeploy.records import Size, StepRecord


def steps_table(checkpoint: Checkpoint) -> None:
    """A row for the original and one for each step, on stdout."""
    origin = checkpoint.origin
    if origin is None:
        return
    out.print(f"[bold]{escape(checkpoint.spec.title)}[/]  [dim]from {escape(origin.title)}[/]")
    rows = [["original", *(f"{origin.accuracy[s]:.2%}" for s in _SPLITS), "", "", *_size(origin.size, origin.size)]]
    rows += [
        [
            escape(step.step),
            *(f"{step.accuracy[s]:.2%}" for s in _SPLITS),
            *(_drop(step, s) for s in _SPLITS),
            *_size(step.after, origin.size),
        ]
        for step in checkpoint.steps
    ]
    names = ["step", *_SPLITS, *(f"lost in {s}" for s in _SPLITS), "MACs", "parameters", "bytes"]
    table(names, rows)
    out.print(f"[dim]lost: percentage points below the original on {escape(origin.dataset)}, with paired 95% bounds[/]")


_SPLITS = ("validation", "test")


def _drop(step: StepRecord, split: str) -> str:
    drop = step.drop[split]
    return f"{100 * drop.drop:+z.2f} ({100 * drop.lower:+z.2f} … {100 * drop.upper:+z.2f})"


def _size(now: Size, before: Size) -> list[str]:
    share = [f"{a:,} ({a / b:.1%})" for a, b in ((now.macs, before.macs), (now.parameters, before.parameters))]
    return [*share, size_text(now.bytes)]
