"""``vggdeploy doctor``: what this machine can run, what it can only build, and the line that mends the rest."""

from __future__ import annotations

from vggdeploy.cli.options import Json


def doctor(json: Json = False) -> None:
    """Say which backends run here, which can only build, and why not for the rest."""
    from vggdeploy.cli import render, tables
    from vggdeploy.diagnosis import diagnose

    found = diagnose()
    if json:
        render.emit_json(found)
    else:
        tables.doctor_table(found)
