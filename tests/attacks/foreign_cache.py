"""What makes an entry of the user's cache one that another user could have written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

NOBODY = 65534


def _linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


# Each is given a path: a file, an entry's directory, or that of its kind.
ATTACKS: dict[str, Callable[[Path], None]] = {
    "all may write": lambda path: path.chmod(0o777),
    "its group may write": lambda path: path.chmod(path.stat().st_mode | 0o020),
    "a link": _linked,
}
if os.geteuid() == 0:  # only root gives files away
    ATTACKS["another owner"] = lambda path: os.chown(path, NOBODY, NOBODY)
