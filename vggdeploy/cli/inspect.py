"""``vggdeploy inspect``: what a bundle holds, and which variant would be taken here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy.cli.options import BundlePath, Json, Modes, check_modes

if TYPE_CHECKING:
    from vggdeploy.bundle import Bundle, Variant
    from vggdeploy.records.layers import LayersReport

MODES: Modes = {"--variant": ("--layers",), "--layers": ("without --sbom",)}


def inspect(
    context: typer.Context,
    bundle: BundlePath,
    json: Json = False,
    sbom: Annotated[
        bool, typer.Option("--sbom", help="Print the bundle's bill of materials instead (CycloneDX 1.6, JSON).")
    ] = False,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="List the layers instead: of ONNX files as their graphs have them, of engines (on their GPU) as TensorRT "
            "built them, with types, shapes and kernels.",
        ),
    ] = False,
    variant: Annotated[list[str] | None, typer.Option(help="Only this variant's layers; may be repeated.")] = None,
) -> int:
    """Verify a bundle's files, read their precision back, and say which variant 'auto' takes here and why."""
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import build, render, tables
    from vggdeploy.engine.selection import choices
    from vggdeploy.errors import ParityError
    from vggdeploy.package.bom import bill_of_materials
    from vggdeploy.verify.readback import wrong_precisions

    check_modes(context, MODES)
    with render.progress(f"reading {bundle}"):
        opened = Bundle.open(bundle)
    if layers:
        from vggdeploy.verify.listing import list_layers

        with render.progress("listing layers"):
            report = list_layers(opened, variant or ())
        if json:
            render.emit_json(report)
        else:
            _print_layers(report)
        return 0
    with render.progress("reading precisions back"):
        wrong = wrong_precisions(opened)
        found = choices(opened)
    if json or sbom:
        render.emit_json(bill_of_materials(opened) if sbom else opened.manifest)
        return ParityError.exit_code if wrong else 0
    tables.bundle_table(opened)
    tables.signature_line(opened)
    for name, reason in wrong.items():
        tables.print_wrong(name, reason)
    for each in opened.manifest.variants:
        build.print_engine(opened.manifest, each)
        if each.name not in wrong:
            _print_bounds(opened, each)
    tables.choice_table(found)
    return ParityError.exit_code if wrong else 0


def _print_layers(report: LayersReport) -> None:
    """A table for each variant, or why it has none."""
    from vggdeploy.cli.render import escape, sentence, table
    from vggdeploy.report.layer_lists import layer_list

    for listed in report.variants:
        if listed.layers:
            table(layer_list(listed))
        for reason in filter(None, (listed.missing, listed.unnamed)):
            sentence(f"{escape(listed.variant)}: {escape(reason)}", "[yellow]·[/] ")


def _print_bounds(bundle: Bundle, variant: Variant) -> None:
    """Whether an image can saturate the products of an INT8 variant; nothing for other variants."""
    from vggdeploy.bundle.variant import INT16, INT32
    from vggdeploy.cli.render import escape, out, sentence
    from vggdeploy.verify.readback import read_bounds

    bounds = read_bounds(bundle, variant) or (variant.quantisation.saturation if variant.quantisation else None)
    if bounds is None:
        return
    out.print(f"\n[bold]{escape(variant.name)}[/] on CPUs without VNNI")
    if bounds.excluded:
        widest = max((p.pair for p in bounds.products), default=0)
        sentence(f"  no image can saturate its products: two of them come to {widest:,} of {INT16:,} at most")
    for p in bounds.products:
        layer = escape(p.layer)
        if not p.channels:
            sentence(f"  {layer}: its weights are stored in a way that proves nothing")
        elif p.saturating:
            named = ", ".join(map(str, p.worst)) + (", …" if p.saturating > len(p.worst) else "")
            sentence(
                f"  {layer}: {p.saturating} of {p.channels} channels can saturate ({named}), by {p.pair - INT16:,} at most"
            )
        elif p.accumulator > INT32:
            sentence(f"  {layer}: its sums can exceed 32 bits: {p.accumulator:,}")
