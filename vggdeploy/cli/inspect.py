"""``vggdeploy inspect``: what a bundle holds, and which variant would be taken here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy.cli.options import BundlePath, Json

if TYPE_CHECKING:
    from vggdeploy.bundle import Bundle, Variant


def inspect(
    bundle: BundlePath,
    json: Json = False,
    sbom: Annotated[
        bool, typer.Option("--sbom", help="Print the bundle's bill of materials instead (CycloneDX 1.6, JSON).")
    ] = False,
) -> int:
    """Verify a bundle's files, read their precision back, and say which variant 'auto' takes here and why."""
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import build, render, tables
    from vggdeploy.engine.selection import choices
    from vggdeploy.errors import ParityError
    from vggdeploy.package.bom import bill_of_materials
    from vggdeploy.verify.readback import wrong_precisions

    opened = Bundle.open(bundle)
    wrong = wrong_precisions(opened)
    if json or sbom:
        render.emit_json(bill_of_materials(opened) if sbom else opened.manifest)
        return ParityError.exit_code if wrong else 0
    tables.bundle_table(opened)
    tables.signature_line(opened)
    for name, reason in wrong.items():
        tables.print_wrong(name, reason)
    for variant in opened.manifest.variants:
        build.print_engine(variant)
        if variant.name not in wrong:
            _print_bounds(opened, variant)
    tables.choice_table(choices(opened))
    return ParityError.exit_code if wrong else 0


def _print_bounds(bundle: Bundle, variant: Variant) -> None:
    """Whether an image can saturate the products of an INT8 variant; nothing for other variants."""
    from vggdeploy.bundle.variant import INT16, INT32
    from vggdeploy.cli.render import escape, out
    from vggdeploy.verify.readback import read_bounds

    bounds = read_bounds(bundle, variant) or (variant.quantisation.saturation if variant.quantisation else None)
    if bounds is None:
        return
    out.print(f"\n[bold]{escape(variant.name)}[/] on CPUs without VNNI")
    if bounds.excluded:
        widest = max((p.pair for p in bounds.products), default=0)
        out.print(f"  no image can saturate its products: two of them come to {widest:,} of {INT16:,} at most")
    for p in bounds.products:
        layer = escape(p.layer)
        if not p.channels:
            out.print(f"  {layer}: its weights are stored in a way that proves nothing")
        elif p.saturating:
            named = ", ".join(map(str, p.worst)) + (", …" if p.saturating > len(p.worst) else "")
            out.print(
                f"  {layer}: {p.saturating} of {p.channels} channels can saturate ({named}), by {p.pair - INT16:,} at most"
            )
        elif p.accumulator > INT32:
            out.print(f"  {layer}: its sums can exceed 32 bits: {p.accumulator:,}")
