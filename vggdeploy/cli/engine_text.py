"""An engine's build in words, for ``build`` and ``inspect``: library, GPUs, options, precision, rebuilds."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape

from vggdeploy.bundle import BuildRecord, PrecisionProof, RebuildSpread, Variant
from vggdeploy.cli.render import out, size_text
from vggdeploy.runtime.registry import library_title


def print_engine(variant: Variant) -> None:
    """What ``inspect`` says about an engine; nothing for other variants."""
    if variant.build is None:
        return
    out.print(f"\n[bold]{escape(variant.name)}[/]: {escape(library_text(variant.build))}, batch {variant.batch}")
    for name, text in facts(variant):
        out.print(f"  {name:<10} {escape(text)}")


def library_text(record: BuildRecord) -> str:
    """``TensorRT for RTX 1.7.1.116``."""
    return f"{library_title(record.library)} {record.version}"


def facts(variant: Variant) -> Iterator[tuple[str, str]]:
    """Names and values of what is known about an engine's build."""
    record = variant.build
    if record is None:
        return
    tuned = f" ({record.gpu}, driver for CUDA {record.driver})" if record.gpu else ""
    yield "targets", ", ".join(record.targets) + tuned
    asked = [f"{name} {text}" for name, text in record.options.items() if name != "batch"]
    if record.graph_batches:
        asked.append(f"CUDA graphs for batches of {', '.join(map(str, record.graph_batches))}")
    if asked:
        yield "options", ", ".join(asked)
    if variant.proof is not None:
        yield "precision", precision_text(variant.proof)
    if record.rebuilds is not None:
        yield "rebuilds", spread_text(record.rebuilds)


def precision_text(proof: PrecisionProof) -> str:
    """Layers and weights by type, as they were read back."""
    layers = ", ".join(f"{count} in {name}" for name, count in proof.layers.items())
    weights = ", ".join(f"{size_text(size)} {name}" for name, size in proof.weight_bytes.items())
    inside = ", ".join(f"{count} in {name}" for name, count in proof.engine.items())
    seen = f"; in the engine: {inside}" if inside else ""
    return f"convolutions and matrix products: {layers}; weights: {weights}{seen}"


def spread_text(found: RebuildSpread) -> str:
    """How much rebuilds differ."""
    same = "byte for byte the same" if found.distinct == 1 else f"{found.distinct} different files"
    low, high = (size_text(size) for size in (min(found.sizes), max(found.sizes)))
    parts = [
        f"{found.builds} builds, {same}",
        low if low == high else f"{low}–{high}",
        f"{min(found.seconds):.2f}–{max(found.seconds):.2f} s",
    ]
    if found.p50_ms:
        parts.append(f"p50 {min(found.p50_ms):.3f}–{max(found.p50_ms):.3f} ms")
    else:
        parts.append("latency not measured, since it cannot run here")
    return ", ".join(parts)
