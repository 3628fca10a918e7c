"""``vggdeploy inspect``: what a bundle holds, and which variant would be taken here."""

from __future__ import annotations

from vggdeploy.cli.options import BundlePath, Json


def inspect(bundle: BundlePath, json: Json = False) -> None:
    """Verify a bundle's files, show its variants and engines, and say which one 'auto' takes here and why."""
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import engine_text, render, tables
    from vggdeploy.selection import choices

    opened = Bundle.open(bundle)
    if json:
        render.emit_json(opened.manifest)
        return
    tables.bundle_table(opened)
    tables.signature_line(opened)
    for variant in opened.manifest.variants:
        engine_text.print_engine(variant)
    tables.choice_table(choices(opened))
