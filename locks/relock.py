"""The lock files: for each extra, one version of every package it brings, with the SHA-256 of every file of that version.

``python locks/relock.py`` takes what ``pyproject.toml`` newly asks for and keeps every other version; ``--upgrade`` takes
the newest of all, ``--constraint FILE`` those of a file such as ``pip freeze`` writes. It needs uv, and downloads no package:
versions and hashes are those that the index states. The lock of ``all`` comes first; the other ones keep to its versions.
"""

from __future__ import annotations

import argparse
import subprocess
import tomllib
from pathlib import Path

LOCKS = Path(__file__).parent
PROJECT = LOCKS.parent / "pyproject.toml"
BASE = "base"  # what `pip install vggdeploy` brings, without an extra


def names() -> list[str]:
    """Every lock's name, in the order in which they are made."""
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    return ["all", BASE, *(extra for extra in extras if extra != "all")]


def command(name: str, constraints: list[Path], *, upgrade: bool) -> list[str]:
    return [
        "uv", "pip", "compile", PROJECT.name, "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes",
        "--no-annotate", "--custom-compile-command", "python locks/relock.py", "--output-file", f"locks/{name}.txt",
        *([] if name == BASE else ["--extra", name]),
        *(["--upgrade"] if upgrade else []),
        *(word for file in constraints for word in ("--constraint", str(file.resolve()))),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Write locks/*.txt anew from pyproject.toml.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest version of everything")
    parser.add_argument("--constraint", type=Path, action="append", default=[], help="a file of versions to keep to")
    options = parser.parse_args()
    whole = LOCKS / "all.txt"
    for name in names():
        constraints = options.constraint if name == "all" else [*options.constraint, whole]
        subprocess.run(command(name, constraints, upgrade=options.upgrade), cwd=LOCKS.parent, check=True)
    for file in LOCKS.glob("*.txt"):
        if file.stem not in names():
            file.unlink()


if __name__ == "__main__":
    main()
