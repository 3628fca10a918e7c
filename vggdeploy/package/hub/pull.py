"""Pull a bundle: only what its manifest names, as many bytes as it names, and nothing where the policy says no.

Nothing of a listing is believed. The manifest comes first, then the signature, where one is asked for; each file is hashed
while it comes, and is given up at the first byte too many. The bundle takes its place when all of it is right.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vggdeploy.bundle import MANIFEST_NAME, Bundle, FileRecord
from vggdeploy.bundle.manifest import Manifest, parse_manifest
from vggdeploy.bundle.store import MAX_MANIFEST_BYTES
from vggdeploy.bundle.trust import SIGNATURE_NAME, SignerRule, key_named_in, signer_rules
from vggdeploy.errors import BundleError, IntegrityError, SignatureError, VggdeployError, one_line
from vggdeploy.package.hub.place import Place, hub, told
from vggdeploy.records import SCHEMA_VERSION, Record
from vggdeploy.system.files import atomic_directory, safe_join
from vggdeploy.types import OnProgress, silent

MAX_BYTES = 16 * 2**30
_MAX_SIGNATURE = 64 * 2**20
_CHUNK = 2**20
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_TIMEOUT = 60.0  # seconds without a byte
_OTHER_SOURCE = "do not use it; get the bundle from its source"


class PullReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy pull --json`` prints. ``commit`` is the one that was read; ``signer`` the key that signed the bundle,
    where a policy asked for one."""

    schema_version: int = SCHEMA_VERSION
    path: str
    source: str
    commit: str
    digest: str
    files: int
    bytes: int
    signer: str = ""


def pull(
    place: Place,
    output: Path,
    *,
    trust: tuple[SignerRule, ...] | None = None,
    overwrite: bool = False,
    max_bytes: int = MAX_BYTES,
    on_progress: OnProgress = silent,
) -> PullReport:
    """Write the bundle to ``output``.

    Args:
        trust: who must have signed it; default: what the policy of the environment asks for.
        max_bytes: of all files together.

    Raises:
        UsageError: something else stands at ``output``.
        BundleError: there is no bundle, or a larger one.
        IntegrityError: a file is cut short, longer or another, or would lie outside.
        SignatureError: a signature is asked for, and none of a trusted key is there.
        VggdeployError: the hub cannot be reached.
    """
    rules = signer_rules() if trust is None else trust
    library = hub()
    commit = _commit(library, place)
    source = _Source(library, place, commit)
    with atomic_directory(output, marker=MANIFEST_NAME, overwrite=overwrite) as root:
        data = source.read(MANIFEST_NAME, MAX_MANIFEST_BYTES)
        if data is None:
            raise BundleError(f"{place} holds no bundle: it has no {MANIFEST_NAME}", "give the repository of a bundle")
        manifest = parse_manifest(data, where=str(place))
        signature = source.read(SIGNATURE_NAME, _MAX_SIGNATURE)
        if rules and signature is None:
            raise SignatureError(f"{place} is not signed, and {rules[0].source} asks for it", "nothing was downloaded")
        if signature is not None and rules:
            key_named_in(signature)  # a damaged one is refused before the weights are fetched
        size = _check(manifest, root, max_bytes)
        (root / MANIFEST_NAME).write_bytes(data)
        if signature is not None:
            (root / SIGNATURE_NAME).write_bytes(signature)
        done = 0
        for record in manifest.files:
            source.save(record, safe_join(root, record.path))
            done += record.size
            on_progress(done / max(size, 1), f"pulling {place}")
        bundle = Bundle.open(root, trust=rules)
    return PullReport(
        path=str(output), source=str(place), commit=commit, digest=manifest.digest, files=len(manifest.files) + 1,
        bytes=size + len(data), signer=bundle.signer,
    )  # fmt: skip


def _commit(library: Any, place: Place) -> str:
    """The commit that is meant, as the hub says. It becomes a part of addresses, so it has to be a hash.

    Raises:
        VggdeployError: the hub cannot be reached, or says something else.
    """
    with told(place, "pulled"):
        try:
            commit = str(library.HfApi().model_info(place.repository, revision=place.revision).sha)
        except (KeyError, TypeError, AttributeError):  # of the library, from an answer that is not the Hub's
            commit = ""
        if not _COMMIT.fullmatch(commit):
            raise VggdeployError(f"{place} cannot be pulled: the hub names no commit", "see HF_ENDPOINT")
    return commit


def _check(manifest: Manifest, root: Path, max_bytes: int) -> int:
    """Refuse names and sizes before a byte of them is asked for; returns the bytes of all files."""
    for record in manifest.files:
        safe_join(root, record.path)
        if record.path in (MANIFEST_NAME, SIGNATURE_NAME):
            raise IntegrityError(f"the manifest lists {record.path} as a file of the bundle", _OTHER_SOURCE)
    size = sum(record.size for record in manifest.files)
    if size > max_bytes:
        raise BundleError(
            f"the bundle has {size:,} bytes, and {max_bytes:,} are allowed", "allow more: --max-size 32GiB"
        )
    free = shutil.disk_usage(root).free
    if size > free:
        raise BundleError(f"the bundle has {size:,} bytes, and {free:,} are free here", "free some disk space")
    return size


class _Source:
    """One commit of a repository."""

    def __init__(self, library: Any, place: Place, commit: str) -> None:
        self._library, self._place, self._commit = library, place, commit

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file; None where there is none.

        Raises:
            BundleError: it is larger than ``limit``.
        """
        data = bytearray()
        with self._open(name) as chunks:
            if chunks is None:
                return None
            for chunk in chunks:
                data += chunk
                if len(data) > limit:
                    raise BundleError(f"{name} of {self._place} has more than {limit:,} bytes", _OTHER_SOURCE)
        return bytes(data)

    def save(self, record: FileRecord, path: Path) -> None:
        """A file of the bundle, exactly as the manifest has it.

        Raises:
            IntegrityError: it is missing, longer, cut short, or other bytes.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o644)
        with os.fdopen(descriptor, "wb") as file, self._open(record.path) as chunks:
            if chunks is None:
                raise IntegrityError(f"{self._place} has no {record.path}, which its manifest names", _OTHER_SOURCE)
            for chunk in chunks:
                size += len(chunk)
                if size > record.size:
                    break
                digest.update(chunk)
                file.write(chunk)
        if size != record.size:
            how = "longer than" if size > record.size else "cut short: it is not"
            raise IntegrityError(
                f"{record.path} of {self._place} is {how} the {record.size:,} bytes of the manifest", _OTHER_SOURCE
            )
        if digest.hexdigest() != record.sha256:
            raise IntegrityError(
                f"{record.path} of {self._place} has other bytes than its manifest says", _OTHER_SOURCE
            )

    @contextmanager
    def _open(self, name: str) -> Iterator[Iterator[bytes] | None]:
        """The bytes of a file as they come; None where the hub has none of this name."""
        library = self._library
        where = f"{self._place.repository}/resolve/{self._commit}/{quote(name)}"
        url = f"{library.HfApi().endpoint}/{where}"
        headers = {**library.utils.build_hf_headers(), "Accept-Encoding": "identity"}
        with (
            told(self._place, "pulled"),
            library.get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT
            ) as answer,
        ):
            if answer.status_code == 404:
                yield None
                return
            if answer.status_code != 200:
                raise VggdeployError(f"{self._place} answers {answer.status_code} for {name}", "try again later")
            packed = answer.headers.get("content-encoding", "identity")
            if packed.strip().lower() != "identity":  # a small body could unpack to any size, before anybody counts it
                raise VggdeployError(
                    f"{self._place} sends {name} packed ({one_line(packed)[:40]}), which nobody asked for",
                    "see HF_ENDPOINT, and the proxy on the way",
                )
            yield answer.iter_raw(_CHUNK)
