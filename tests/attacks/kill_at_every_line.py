"""Run a write again and again, each time killing it (SIGKILL) one executed line later, and report what was left.

    python tests/attacks/kill_at_every_line.py SCENARIO DIRECTORY [STEP]

One process for all the kills: it forks a child for each, so that a thousand deaths take seconds. A child is killed
before its n-th line in `vggdeploy.system`'s files, `vggdeploy.bundle.store` or `shutil`, for n = 1, 1 + STEP … until it ends
alive.
Prints one JSON object: how many were killed, the states seen after the kills, and after the write that follows each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import vggdeploy.system.files
from vggdeploy.bundle import Bundle, store, update_bundle
from vggdeploy.errors import VggdeployError
from vggdeploy.system import drafts, exchange

TRACED = {vggdeploy.system.files.__file__, exchange.__file__, drafts.__file__, store.__file__, shutil.__file__}
OLD = {"marker": b"old", "weights/a": b"old a" * 999, "weights/b": b"old b"}
NEW = {"marker": b"new", "weights/a": b"new a" * 777, "other": b"new"}


def put(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


class File:
    """`atomic_write` over an old file."""

    def __init__(self, root: Path) -> None:
        self.target = root / "report.json"

    def prepare(self) -> None:
        self.target.write_bytes(b"old" * 5000)

    def write(self) -> None:
        vggdeploy.system.files.atomic_write(self.target, b"new" * 4000)

    def state(self) -> str:
        if not self.target.exists():
            return "none"
        return {b"old" * 5000: "old", b"new" * 4000: "new"}.get(self.target.read_bytes(), "torn")


class Directory:
    """`atomic_directory` over an old directory of ours."""

    def __init__(self, root: Path) -> None:
        self.target = root / "bundle"

    def prepare(self) -> None:
        put(self.target, OLD)

    def write(self) -> None:
        with vggdeploy.system.files.atomic_directory(self.target, marker="marker", overwrite=True) as draft:
            put(draft, NEW)

    def state(self) -> str:
        if not self.target.exists():
            return "none"
        found = tree(self.target)
        return "old" if found == OLD else "new" if found == NEW else "torn"


class FirstDirectory(Directory):
    """`atomic_directory` where nothing stood."""

    def prepare(self) -> None:
        self.target.parent.mkdir(exist_ok=True)


class NoExchange(Directory):
    """`atomic_directory` on a file system without RENAME_EXCHANGE."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        exchange.ctypes.CDLL = lambda *_, **__: object()  # type: ignore[assignment,misc]


class Update:
    """`update_bundle` of a real bundle: one variant replaced, one file added."""

    def __init__(self, root: Path) -> None:
        self.target = root / "bundle"
        self.source = root.parent / "source"
        self.old = Bundle.open(self.source).manifest.digest

    def prepare(self) -> None:
        shutil.copytree(self.source, self.target)

    def write(self) -> None:
        with update_bundle(Bundle.open(self.target)) as draft:
            path = draft.manifest.variants[-1].path  # type: ignore[union-attr]
            draft.write(path, b"new bytes")
            draft.write("notes/new.txt", b"new")

    def state(self) -> str:
        if not self.target.exists():
            return "none"
        try:
            digest = Bundle.open(self.target).manifest.digest
        except VggdeployError:
            return "torn"
        return "old" if digest == self.old else "new"


SCENARIOS: dict[str, Callable[[Path], Any]] = {
    "file": File, "directory": Directory, "first": FirstDirectory, "no-exchange": NoExchange, "update": Update,
}  # fmt: skip


def killed_at(line: int, write: Callable[[], None]) -> bool:
    """Fork, write, and die before the ``line``-th traced line. Whether it died."""
    child = os.fork()
    if child == 0:
        left = line

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in TRACED:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            write()
        finally:
            sys.settrace(None)
            os._exit(0 if sys.exc_info()[0] is None else 9)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != 0:
        raise RuntimeError(f"the write itself failed at line {line}")
    return os.WIFSIGNALED(status)


def main(scenario: str, work: Path, step: int = 1) -> None:
    root = work / "root"
    left, after, strays = Counter[str](), Counter[str](), Counter[str]()
    root.mkdir()
    case = SCENARIOS[scenario](root)
    line = 1 - step
    alive = False
    while not alive:
        line += step
        shutil.rmtree(root)
        root.mkdir()
        case.prepare()
        alive = not killed_at(line, case.write)
        left[case.state()] += 1
        case.write()
        after[case.state()] += 1
        strays.update(p.name for p in root.iterdir() if p != case.target)
    json.dump({"kills": (line - 1) // step, "left": left, "after": after, "strays": strays}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
