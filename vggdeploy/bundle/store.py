"""The files of a bundle: opened only after every hash was checked, changed only as a whole."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle.manifest import MANIFEST_NAME, FileRecord, Manifest, Variant, parse_manifest
from vggdeploy.errors import BundleError, IntegrityError
from vggdeploy.files import atomic_directory, link_tree, safe_join, sha256_of
from vggdeploy.records import to_json

Arrays = dict[str, NDArray[np.generic]]


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class Bundle:
    """An open bundle: a directory and its manifest. `Bundle.open` checks every file's SHA-256 first."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, only: Iterable[str] | None = None) -> Bundle:
        """Open a bundle and verify its files.

        Args:
            path: the bundle's directory.
            only: names of variants; their files and the golden pair are checked, and no others. Default: every file.

        Raises:
            BundleError: no bundle there, or a manifest that cannot be read.
            IntegrityError: a file is missing, altered, or outside the bundle.
        """
        root = Path(path)
        try:
            data = (root / MANIFEST_NAME).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            found = "is not a bundle (no manifest.json)" if root.exists() else "does not exist"
            raise BundleError(f"{root} {found}", "make one: vggdeploy export CHECKPOINT -o BUNDLE") from None
        except OSError as error:
            raise BundleError(f"{root} cannot be read: {error.strerror}", "check its permissions") from error
        bundle = cls(root, parse_manifest(data, where=str(root)))
        bundle.check_files(only=only)
        return bundle

    def check_files(self, *, only: Iterable[str] | None = None) -> None:
        """Compare size and SHA-256 of files with the manifest, on as many threads as there are cores.

        Raises:
            IntegrityError: the first file that is missing, altered or outside the bundle.
        """
        records = {record.path: record for record in self.manifest.files}
        if len(records) != len(self.manifest.files):
            raise IntegrityError(f"{self.root}/{MANIFEST_NAME} lists a file twice", "export the bundle again")
        golden = {*self.manifest.golden.inputs.values(), *self.manifest.golden.outputs.values()}
        needed = {v.path for v in self.manifest.variants} | golden
        if only is not None:
            wanted = {self.manifest.variant(name).path for name in only} | golden
            records = {p: r for p, r in records.items() if any(p == w or p.startswith(f"{w}/") for w in wanted)}
            needed &= wanted
        for path in needed:
            if not any(p == path or p.startswith(f"{path}/") for p in records):
                raise IntegrityError(f"{self.root}: the manifest has no hash for {path}", "export the bundle again")
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(self._check, sorted(records.values(), key=lambda record: -record.size)))

    def _check(self, record: FileRecord) -> None:
        path = safe_join(self.root, record.path)
        again = "restore the bundle from its source, or export it again"
        if not path.is_file():
            raise IntegrityError(f"{self.root} misses {record.path}", again)
        size = path.stat().st_size
        if size != record.size:
            raise IntegrityError(f"{path} has {size} bytes; the manifest says {record.size}", again)
        if sha256_of(path) != record.sha256:
            raise IntegrityError(f"{path} was altered: its SHA-256 is not the manifest's", again)

    def path(self, relative: str) -> Path:
        """The path of a file of the bundle, which never leaves it."""
        return safe_join(self.root, relative)

    def sha256(self, relative: str) -> str:
        """The recorded hash of a file; for a directory, of its largest file (the weights)."""
        inside = [r for r in self.manifest.files if r.path == relative or r.path.startswith(f"{relative}/")]
        return max(inside, key=lambda record: record.size).sha256 if inside else ""

    def size(self, variant: Variant) -> int:
        """Bytes of a variant on disk."""
        prefix = f"{variant.path}/"
        return sum(r.size for r in self.manifest.files if r.path == variant.path or r.path.startswith(prefix))

    def golden(self) -> tuple[Arrays, Arrays]:
        """The golden inputs and the reference's outputs, by graph name."""
        files = self.manifest.golden
        return self._arrays(files.inputs), self._arrays(files.outputs)

    def _arrays(self, files: dict[str, str]) -> Arrays:
        return {name: np.load(self.path(path), allow_pickle=False) for name, path in files.items()}


@contextmanager
def create_bundle(target: Path, *, overwrite: bool = False) -> Iterator[Draft]:
    """A new bundle: fill the draft, set its manifest; it appears at ``target`` whole, or not at all."""
    with atomic_directory(target, marker=MANIFEST_NAME, overwrite=overwrite) as root:
        draft = Draft(root, known={})
        yield draft
        draft.finish()


@contextmanager
def update_bundle(bundle: Bundle) -> Iterator[Draft]:
    """A changed copy of ``bundle`` that takes its place in one step. Files that stay are hard links, not copies.

    To replace a file, use `Draft.path` (it unlinks first: the old bundle's bytes are never written to).
    """
    with atomic_directory(bundle.root, marker=MANIFEST_NAME, overwrite=True) as root:
        link_tree(bundle.root, root, skip=frozenset({MANIFEST_NAME}))
        draft = Draft(root, known={record.path: record for record in bundle.manifest.files})
        draft.manifest = bundle.manifest
        yield draft
        draft.finish()


class Draft:
    """A bundle that is being written. Set ``manifest`` (its ``files`` are filled in at the end)."""

    def __init__(self, root: Path, known: dict[str, FileRecord]) -> None:
        self.root = root
        self.manifest: Manifest | None = None
        self._known = known

    def path(self, relative: str) -> Path:
        """Where to write a file; what stood there before is unlinked, its directory is made."""
        path = safe_join(self.root, relative)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._known.pop(relative, None)
        return path

    def write(self, relative: str, data: bytes) -> None:
        self.path(relative).write_bytes(data)

    def save_arrays(self, directory: str, arrays: Arrays) -> dict[str, str]:
        """Write each array as ``directory/NAME.npy``; returns name → path."""
        paths = {name: f"{directory}/{name}.npy" for name in arrays}
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            self.write(paths[name], buffer.getvalue())
        return paths

    def finish(self) -> Bundle:
        """Hash every file that is new, and write the manifest. May be called again after the manifest changed."""
        if self.manifest is None:
            raise ValueError("a draft needs a manifest before it is finished")
        for path in sorted(self.root.rglob("*")):
            relative = path.relative_to(self.root).as_posix()
            if path.is_file() and relative not in self._known and relative != MANIFEST_NAME:
                record = FileRecord(path=relative, sha256=sha256_of(path), size=path.stat().st_size)
                self._known[relative] = record
        files = tuple(self._known[path] for path in sorted(self._known))
        self.manifest = msgspec.structs.replace(self.manifest, files=files)
        (self.root / MANIFEST_NAME).write_bytes(to_json(self.manifest))
        return Bundle(self.root, self.manifest)
