"""How much memory a model takes: guessed from its files before it is opened, measured when it was."""

from __future__ import annotations

import os
from pathlib import Path

from vggdeploy.bundle import REFERENCE, Bundle, Manifest, Variant
from vggdeploy.engine.engine import Engine
from vggdeploy.errors import VggdeployError
from vggdeploy.serve.catalogue import Place
from vggdeploy.serve.settings import MIB

# A runtime holds a file's weights, for a while a second time in the order of its kernels; and its own structures.
_COPIES, _BESIDE = 2, 32 * MIB


def resident() -> int:
    """Bytes of this process that are in memory; 0 where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class TooLarge(VggdeployError):
    """A model for which there is no room, whatever is closed."""


class Sizes:
    """What models have been seen to take, by the bytes that they ran."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def needed(self, place: Place) -> int:
        """Bytes, as measured when the same file was opened before, else twice the largest file that may be opened."""
        try:
            manifest, files = _files(place)
        except VggdeployError:  # its opening will say so
            return _BESIDE
        seen = [self._seen[key] for v in files if (key := manifest.sha256(v.path)) in self._seen]
        if seen:
            return max(seen)
        sizes = {record.path: record.size for record in manifest.files}
        return _COPIES * max((_below(sizes, v.path) for v in files), default=0) + _BESIDE

    def forget(self, place: Place) -> bool:
        """Have it measured anew when it is opened next; whether it was measured before."""
        manifest, files = _files(place)
        found = [key for v in files if (key := manifest.sha256(v.path)) in self._seen]
        for key in found:
            del self._seen[key]
        return bool(found)

    def learn(self, place: Place, engine: Engine, grown: int) -> int:
        """Bytes that an opened engine takes: by how much the process grew, and its file at least.

        The process grows by less than that where it fills memory that another model left behind; so the largest of the
        times that a file was opened is remembered.
        """
        manifest = engine.bundle.manifest
        key = manifest.sha256(engine.variant.path)
        file = _below({record.path: record.size for record in manifest.files}, engine.variant.path)
        self._seen[key] = max(grown, file, self._seen.get(key, 0))
        return self._seen[key]


def _files(place: Place) -> tuple[Manifest, list[Variant]]:
    """The manifest, and the variants of it that may be opened."""
    manifest = Bundle.open(place.path, only=(), trust=()).manifest
    variants = [v for v in manifest.variants if place.settings.variant in (None, v.name)]
    return manifest, [v for v in variants if v.name != REFERENCE] or variants


def _below(sizes: dict[str, int], path: str) -> int:
    return sum(size for name, size in sizes.items() if name == path or name.startswith(f"{path}/"))
