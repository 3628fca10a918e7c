"""Record the whole way in a terminal as docs/images/recording.svg: ``python docs/images/make_recording.py``.

The commands run for real, one after another in a directory with one test digit, on a terminal of 80 columns; what they print
on stdout is drawn as it came, line by line. (Progress goes to stderr, and is left out.) Only the time between lines is the
picture's own.
"""

from __future__ import annotations

import os
import pty
import shlex
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fcntl import ioctl
from html import escape
from pathlib import Path
from termios import TIOCSWINSZ

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.segment import Segment
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from vggdeploy.data.loaders import load_split
from vggdeploy.data.sources import default_preprocess

HERE = Path(__file__).parent.resolve()
COLUMNS, ROWS = 80, 26  # of the window
CHAR, LINE, MARGIN = 8.4, 18, 14  # pixels
PER_LINE, AFTER_COMMAND, LAST = 0.12, 1.2, 8.0  # seconds
COMMANDS = (
    "vggdeploy train --arch vgg11_bn --width 0.25 --hidden 512 --dataset digits --image-size 32 --epochs 6 -o digits-ckpt",
    "vggdeploy export digits-ckpt -o digits",
    "vggdeploy optimize digits --step int8",
    "vggdeploy predict digits a-digit.png",
)
STYLE = """
text { font: 14px/18px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; white-space: pre; }
@media not (prefers-reduced-motion: reduce) { .l { opacity: 0; animation: show TOTALs step-end infinite; } #s { SCROLL } }
"""


def run(command: str, home: Path) -> str:
    """What a command writes to a terminal, with its colours; a command that fails ends the recording."""
    mine, its = pty.openpty()
    ioctl(its, TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    # A terminal that can move its cursor back would show progress there; stderr is no terminal.
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    process = subprocess.Popen(
        [sys.executable, "-m", *shlex.split(command)], cwd=home, env=env, stdout=its, stderr=subprocess.PIPE
    )
    os.close(its)
    parts = []
    while True:
        try:
            part = os.read(mine, 4096)
        except OSError:  # Linux's answer when the other end is closed
            break
        if not part:
            break
        parts.append(part)
    _, told = process.communicate()
    os.close(mine)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}:\n{told.decode()}")
    return b"".join(parts).decode().replace("\r\n", "\n")


def wrapped(command: str) -> str:
    """A command as one types it: continued on the next line where it is too long for one."""
    lines, line = [], "$"
    for word in command.split(" "):
        if len(line) + len(word) + 3 > COLUMNS:
            lines.append(line + " \\")
            line = "   "
        line += f" {word}"
    return "\n".join([*lines, line])


def screen_lines(text: Text, console: Console) -> Iterator[list[Segment]]:
    yield from console.render_lines(text, console.options.update(width=COLUMNS), pad=False)


def hexadecimal(colour: Color | None, *, foreground: bool = True) -> str:
    return (colour or Color.default()).get_truecolor(DIMMED_MONOKAI, foreground).hex


def drawn(line: list[Segment], row: int) -> str:
    """A line as SVG: a piece for each run of one style, at its column and as wide as its columns are."""
    column, pieces = 0, []
    for segment in line:
        width = segment.cell_length
        style = segment.style
        if segment.text.strip():
            colour = hexadecimal(style.color if style else None)
            more = ' font-weight="bold"' if style and style.bold else ""
            more += ' fill-opacity="0.65"' if style and style.dim else ""
            pieces.append(
                f'<text x="{MARGIN + column * CHAR:g}" y="{row * LINE + 14}" textLength="{width * CHAR:g}" '
                f'lengthAdjust="spacingAndGlyphs" fill="{colour}"{more}>{escape(segment.text.rstrip(chr(10)))}</text>'
            )
        column += width
    return "".join(pieces)


def picture(blocks: list[list[list[Segment]]]) -> str:
    """``blocks``: of each command its line and what it printed. Reduced motion shows the last window, standing still."""
    times, now = [], 0.5
    for block in blocks:
        for _ in block:
            times.append(now)
            now += PER_LINE
        now += AFTER_COMMAND
    lines = [line for block in blocks for line in block]
    total = now + LAST
    shown = [f'<g class="l" style="animation-name: a{row}">{drawn(line, row)}</g>' for row, line in enumerate(lines)]
    keys = "\n".join(
        f"@keyframes a{row} {{ {100 * at / total:.3f}% {{ opacity: 1; }} }}" for row, at in enumerate(times)
    )
    moves = [(at, row - ROWS + 1) for row, at in enumerate(times) if row >= ROWS]
    steps = " ".join(f"{100 * at / total:.3f}% {{ transform: translateY(-{by * LINE}px); }}" for at, by in moves)
    style = STYLE.replace("show TOTALs", f"{total:.2f}s").replace(
        "SCROLL", f"animation: scroll {total:.2f}s step-end infinite;"
    )
    width, height = COLUMNS * CHAR + 2 * MARGIN, ROWS * LINE + 2 * MARGIN
    still = max(len(lines) - ROWS, 0) * LINE
    ground = hexadecimal(None, foreground=False)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        'aria-label="A terminal: train, export, quantise to INT8, each with its proof, and predict">\n'
        f"<style>{style}\n{keys}\n@keyframes scroll {{ 0% {{ transform: none; }} {steps} }}</style>\n"
        f'<rect width="100%" height="100%" rx="8" fill="{ground}"/>\n'
        f'<svg y="{MARGIN}" width="{width:g}" height="{ROWS * LINE}" overflow="hidden">'
        f'<g id="s" transform="translate(0 -{still})">\n' + "\n".join(shown) + "\n</g></svg></svg>\n"
    )


def main() -> None:
    console = Console(width=COLUMNS, force_terminal=True, color_system="truecolor", file=sys.stderr)
    blocks = []
    with tempfile.TemporaryDirectory() as home:
        digits = load_split("digits", "test", default_preprocess("digits", 32))
        Image.fromarray(np.asarray(digits.images[0, ..., 0])).save(Path(home) / "a-digit.png")
        for command in COMMANDS:
            said = run(command, Path(home))
            text = Text.assemble((f"{wrapped(command)}\n", "bold green"), Text.from_ansi(said.rstrip("\n")), "\n")
            blocks.append(list(screen_lines(text, console)))
            print(f"{command}: {len(blocks[-1])} lines", file=sys.stderr)
    (HERE / "recording.svg").write_text(picture(blocks), encoding="utf-8")


if __name__ == "__main__":
    main()
