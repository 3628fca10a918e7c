"""``vggdeploy inspect``: what a bundle holds, and which variant would be taken here."""

from __future__ import annotations

from vggdeploy.cli.options import BundlePath, Json


def inspect(bundle: BundlePath, json: Json = False) -> int:
    """Verify a bundle's files, read their precision back, and say which variant 'auto' takes here and why."""
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import build, render, tables
    from vggdeploy.engine.selection import choices
    from vggdeploy.errors import ParityError
    from vggdeploy.verify.readback import wrong_precisions

    opened = Bundle.open(bundle)
    wrong = wrong_precisions(opened)
    if json:
        render.emit_json(opened.manifest)
        return ParityError.exit_code if wrong else 0
    tables.bundle_table(opened)
    tables.signature_line(opened)
    for name, reason in wrong.items():
        tables.print_wrong(name, reason)
    for variant in opened.manifest.variants:
        build.print_engine(variant)
    tables.choice_table(choices(opened))
    return ParityError.exit_code if wrong else 0
