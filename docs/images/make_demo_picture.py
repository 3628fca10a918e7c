"""Run the demo and draw its terminal output as docs/images/demo.svg: ``python docs/images/make_demo_picture.py``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from vggdeploy.cli import render, tables
from vggdeploy.cli.app import run

HERE = Path(__file__).parent.resolve()
WIDTH = 148


def main() -> int:
    # What a wide terminal shows: one console for everything, recorded.
    screen = Console(record=True, width=WIDTH, highlight=False, soft_wrap=True, force_terminal=True, file=sys.stdout)
    quiet = Console(stderr=True, quiet=True)
    tables.out = render.out = screen
    render.err = quiet
    screen.print("[bold green]$[/] vggdeploy demo")
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        code = run(["demo"])
    screen.save_svg(str(HERE / "demo.svg"), title="vggdeploy demo")
    return code


if __name__ == "__main__":
    sys.exit(main())
