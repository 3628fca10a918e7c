"""The files of a bundle: opened only after every hash was checked, changed only as a whole."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote

import msgspec
import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle.arrays import array_bytes, read_array
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, Checkpoint, parse_checkpoint
from vggdeploy.bundle.manifest import MANIFEST_NAME, FileRecord, Manifest, is_in, parse_manifest, seal
from vggdeploy.bundle.trust import SIGNATURE_NAME, SignerRule, signer_rules
from vggdeploy.bundle.variant import Variant
from vggdeploy.errors import BundleError, IntegrityError, nearby
from vggdeploy.records.base import notebook_html
from vggdeploy.system.files import atomic_directory, link_tree, read_regular, safe_join, sha256_of
from vggdeploy.system.optional import require
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import TensorSpec

Arrays = dict[str, NDArray[np.generic]]

MAX_MANIFEST_BYTES = 64 * 2**20
_ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
_log = logging.getLogger("vggdeploy")
_AGAIN = "restore the bundle from its source, or export it again"


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class Bundle:
    """An open bundle: a directory and its manifest. `Bundle.open` checks every file's SHA-256 first.

    ``signer`` is the fingerprint of the trusted key that signed it, "" where no signature was asked for.
    """

    def __init__(self, root: Path, manifest: Manifest, signer: str = "") -> None:
        self.root = root
        self.manifest = manifest
        self.signer = signer
        self._unchecked: set[str] = set()

    def __repr__(self) -> str:
        return f"Bundle({self.manifest.name}: {', '.join(v.name for v in self.manifest.variants)})"

    def _repr_html_(self) -> str | None:
        return notebook_html(self)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        only: Iterable[str] | None = None,
        trust: Sequence[SignerRule] | None = None,
    ) -> Bundle:
        """Open a bundle and verify its files.

        Args:
            path: the bundle's directory.
            only: names of variants; their files and the golden pair are checked now, and the other files when `path`
                is asked for them. Default: every file, now.
            trust: who must have signed it, see `vggdeploy.bundle.trust.signer_rules`. Default: what the policy of the
                environment asks for, which is nothing where there is no policy.

        Raises:
            BundleError: no bundle there, or a manifest that cannot be read.
            IntegrityError: a file is missing, altered, or outside the bundle.
            SignatureError: a signature was asked for, and none of a trusted key fits these files.
        """
        root = Path(path)
        asked = signer_rules() if trust is None else trust
        data = _read_manifest(root)
        signer = _signer(root, data, asked) if asked else ""
        bundle = cls(root, parse_manifest(data, where=str(root)), signer)
        bundle.check_files(only=only)
        return bundle

    def check_files(self, *, only: Iterable[str] | None = None) -> None:
        """Compare size and SHA-256 of files with the manifest, on as many threads as there are cores.

        Raises:
            IntegrityError: a file that is missing, altered or outside the bundle: the largest of them.
            BundleError: a file that may not be read.
        """
        manifest = self.manifest
        golden = manifest.golden.pair
        needed = (*golden, *manifest.golden.anchor, *(v.path for v in manifest.variants))
        _need_records(manifest, needed, where=str(self.root))
        wanted = None if only is None else [*golden, *(manifest.variant(name).path for name in only)]
        self._unchecked = {record.path for record in manifest.files}
        self._check(r.path for r in manifest.files if wanted is None or any(is_in(r.path, w) for w in wanted))

    def _check(self, paths: Iterable[str]) -> None:
        files = sorted((self.file(path) for path in paths), key=lambda file: -(file.size or 0))
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(HashedFile.check, files))

    @contextmanager
    def checking_all(self, *, but: str = "") -> Iterator[None]:
        """Check every file that was not checked yet while the block runs, and at its end. ``but`` is left to the block,
        which reads it, and so checks it; whatever it did not read is checked at the end.

        Raises:
            IntegrityError, BundleError: as `check_files`, after the block.
        """
        with ThreadPoolExecutor(max_workers=1) as pool:
            others = pool.submit(self._check, [path for path in tuple(self._unchecked) if path != but])
            yield
            others.result()
        self._check(tuple(self._unchecked))

    def file(self, relative: str) -> HashedFile:
        """A file of the bundle, by the manifest's hash: its bytes are compared with it whenever they are read, and what was
        compared is what is used.

        Raises:
            IntegrityError: the path leads outside, or the manifest has no hash for it.
        """
        record = next((r for r in self.manifest.files if r.path == relative), None)
        if record is None:
            raise IntegrityError(f"the manifest of {self.root} has no hash for {relative!r}", _AGAIN)
        path = safe_join(self.root, relative)
        return HashedFile(path, record.sha256, record.size, lambda: self._unchecked.discard(relative))

    def main_file(self, variant: Variant) -> HashedFile:
        """The file that runs: of the reference its weights. Raises as `file`."""
        return self.file(main_path(variant))

    def checkpoint(self) -> Checkpoint:
        """What the reference's ``checkpoint.json`` says.

        Raises:
            BundleError: a slim bundle, which has none; as `file`. CheckpointError: it cannot be understood.
        """
        file = self.file(f"{self.manifest.reference().path}/{CHECKPOINT_NAME}")
        return parse_checkpoint(file.read(limit=MAX_MANIFEST_BYTES), str(file.path))

    def path(self, relative: str) -> Path:
        """The path of a file (or a directory) of the bundle, which never leaves it and whose bytes were checked. They may be
        others when the path is opened: what reaches a parser or a library comes from `file`.

        Raises:
            IntegrityError: it leads outside, or a file that `open` was told to skip is not the manifest's.
        """
        path = safe_join(self.root, relative)
        self._check([p for p in tuple(self._unchecked) if is_in(p, relative)])
        return path

    def sha256(self, relative: str) -> str:
        """As `Manifest.sha256`."""
        return self.manifest.sha256(relative)

    def size(self, variant: Variant) -> int:
        """Bytes of a variant on disk."""
        return sum(r.size for r in self.manifest.files if is_in(r.path, variant.path))

    def golden(self) -> tuple[Arrays, Arrays]:
        """The golden inputs and the reference's outputs, by graph name: as many samples in each, one at least.

        Raises:
            BundleError: they are not the arrays that the manifest's inputs and outputs describe.
        """
        files, manifest = self.manifest.golden, self.manifest
        inputs = self._arrays(files.inputs, (manifest.input,))
        outputs = self._arrays(files.outputs, manifest.outputs)
        self._need_same_length((*inputs.values(), *outputs.values()))
        return inputs, outputs

    def stress(self) -> Arrays:
        """The reference's outputs for the stress images, by graph name; empty in a bundle that was made without.

        Raises:
            BundleError: as for `golden`.
        """
        files = self.manifest.golden.stress
        outputs = self._arrays(files, self.manifest.outputs) if files else {}
        self._need_same_length(outputs.values())
        return outputs

    def _need_same_length(self, arrays: Iterable[NDArray[np.generic]]) -> None:
        if len({len(array) for array in arrays}) > 1:
            raise BundleError(
                f"the golden arrays of {self.root} hold different numbers of samples", "export the bundle again"
            )

    def _arrays(self, files: dict[str, str], specs: tuple[TensorSpec, ...]) -> Arrays:
        names = {spec.name for spec in specs}
        if files.keys() != names:
            raise BundleError(
                f"{self.root} has golden arrays for {sorted(files)}; the graph has {sorted(names)}",
                "export the bundle again",
            )
        return {spec.name: read_array(self.file(files[spec.name]), spec) for spec in specs}


def main_path(variant: Variant) -> str:
    """Where the file that runs lies in its bundle: of the reference its weights."""
    return f"{variant.path}/{WEIGHTS_NAME}" if variant.format == "checkpoint" else variant.path


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

    A signature of the old bundle is none of the new one: it is left out, and a warning is logged.

    To replace a file, use `Draft.path` (it unlinks first: the old bundle's bytes are never written to). The bundle that
    was given is then out of date: open it again.

    Raises:
        BundleError: another command changed the bundle since it was opened; nothing of either change is lost.
    """
    data = _read_manifest(bundle.root)
    if parse_manifest(data, where=str(bundle.root)).digest != bundle.manifest.digest:
        raise BundleError(f"{bundle.root} was changed since it was opened", "open it again (run this command again)")
    with atomic_directory(bundle.root, marker=MANIFEST_NAME, overwrite=True, unchanged=data) as root:
        signed = (bundle.root / SIGNATURE_NAME).exists()
        link_tree(bundle.root, root, skip=frozenset({MANIFEST_NAME, SIGNATURE_NAME}))
        draft = Draft(root, known={record.path: record for record in bundle.manifest.files})
        draft.manifest = bundle.manifest
        yield draft
        draft.finish()
    if signed:
        _log.warning("%s was changed and is not signed any more: vggdeploy sign %s --key KEY", bundle.root, bundle.root)


class Draft:
    """A bundle that is being written. Set ``manifest`` (its ``files`` and ``digest`` are filled in by `finish`)."""

    def __init__(self, root: Path, known: dict[str, FileRecord]) -> None:
        self.root = root
        self.manifest: Manifest | None = None
        self._known = known
        self._stamps = {relative: _stamp(root / relative) for relative in known}

    def path(self, relative: str) -> Path:
        """Where to write a file; what stood there before (a file or a directory) is removed, its directory is made."""
        path = safe_join(self.root, relative)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        self._known.pop(relative, None)
        return path

    def write(self, relative: str, data: bytes) -> None:
        self.path(relative).write_bytes(data)

    def known(self, relative: str, sha256: str) -> None:
        """A file that was just written, with the hash of what was written: `finish` does not read it again."""
        path = self.root / relative
        self._stamps[relative] = _stamp(path)
        self._known[relative] = FileRecord(path=relative, sha256=sha256, size=path.stat().st_size)

    def save_arrays(self, directory: str, arrays: Arrays) -> dict[str, str]:
        """Write each array as ``directory/NAME.npy``; returns name → path."""
        paths = {name: f"{directory}/{name}.npy" for name in arrays}
        for name, array in arrays.items():
            self.write(paths[name], array_bytes(array))
        return paths

    def finish(self) -> Bundle:
        """Hash every file that is new, and write the manifest. May be called again after the manifest changed.

        Raises:
            BundleError: the manifest could not be read back, or names files that are not there.
        """
        if self.manifest is None:
            raise ValueError("a draft needs a manifest before it is finished")
        records = {}
        for path in sorted(self.root.rglob("*")):
            relative = path.relative_to(self.root).as_posix()
            if (path.is_dir() and not path.is_symlink()) or relative == MANIFEST_NAME:
                continue
            safe_join(self.root, relative)  # a link, or a name that no bundle may hold
            # A file that was written past `path` has another stamp: what was known of it is not true any more.
            if relative not in self._known or self._stamps.get(relative) != _stamp(path):
                self._stamps[relative] = _stamp(path)
                self._known[relative] = FileRecord(path=relative, sha256=sha256_of(path), size=path.stat().st_size)
            records[relative] = self._known[relative]
        self._known = records
        data = seal(msgspec.structs.replace(self.manifest, files=tuple(records.values())))
        # A bundle that cannot be opened again is not written at all.
        self.manifest = parse_manifest(data, where=str(self.root))
        _need_records(self.manifest, [v.path for v in self.manifest.variants], where=str(self.root))
        manifest = self.root / MANIFEST_NAME
        manifest.unlink(missing_ok=True)
        manifest.write_bytes(data)
        return Bundle(self.root, self.manifest)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced: inode, size, time of its last change."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _need_records(manifest: Manifest, paths: Iterable[str], *, where: str) -> None:
    records = {record.path for record in manifest.files}
    for path in paths:
        if path not in records and not any(is_in(record, path) for record in records):
            raise IntegrityError(f"the manifest of {where} has no hash for {path!r}", "export the bundle again")


def _signer(root: Path, manifest: bytes, asked: Sequence[SignerRule]) -> str:
    """Check the signature of the bundle for every rule; returns the fingerprint of the key that signed it.

    ``manifest`` are the bytes that the caller goes on with: they have to be the signed ones.
    """
    require("model_signing", to="check a bundle's signature", extra="sign")
    from vggdeploy.bundle.signature import verify_signature  # the extra `sign`, where a key is demanded

    return [verify_signature(root, manifest, trust) for trust in asked][-1]


def _read_manifest(root: Path) -> bytes:
    try:
        data = read_regular(root / MANIFEST_NAME, limit=MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        if root.suffix in _ENGINE_SUFFIXES and root.is_file():
            raise BundleError(
                f"{root} is an engine without its bundle: nothing vouches for its bytes, and loading runs them",
                "give the bundle it belongs to, or build one from the model: vggdeploy build BUNDLE",
            ) from None
        if (root / CHECKPOINT_NAME).is_file():
            hint = f"make one of it: vggdeploy export {quote(str(root))} -o BUNDLE"
            raise BundleError(f"{root} is a checkpoint, and not a bundle yet", hint) from None
        problem = "is not a bundle (no manifest.json)" if root.exists() else "does not exist"
        raise BundleError(
            f"{root} {problem}", f"{nearby(root)}make one: vggdeploy export CHECKPOINT -o BUNDLE"
        ) from None
    except OSError as error:
        allowed = error.errno not in (errno.EACCES, errno.EPERM)
        raise BundleError(
            f"{root}/{MANIFEST_NAME} cannot be read: {error.strerror}", _AGAIN if allowed else "check its permissions"
        ) from error
    safe_join(root, MANIFEST_NAME)
    return data
