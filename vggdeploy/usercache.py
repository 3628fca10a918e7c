"""Where vggdeploy keeps what it can make again: engines that were built, proofs that were run on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """``$VGGDEPLOY_CACHE``, else ``vggdeploy`` in ``$XDG_CACHE_HOME``, else ``~/.cache/vggdeploy``."""
    own = os.environ.get("VGGDEPLOY_CACHE", "")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path there is invalid, and to be ignored.
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "vggdeploy"  # noqa: PTH117
