"""Signing a bundle, and the report on its signature."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vggdeploy.bundle.manifest import MANIFEST_NAME
from vggdeploy.bundle.store import Bundle
from vggdeploy.bundle.trust import SIGNATURE_NAME, SignerRule, key_named_in, read_signature
from vggdeploy.errors import SignatureError
from vggdeploy.records import SCHEMA_VERSION, Record
from vggdeploy.system.files import atomic_write, read_regular
from vggdeploy.system.optional import require


class SignatureReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy sign --json`` and ``verify-signature --json`` print.

    ``digest`` is the manifest's; ``key`` the SHA-256 of the public key's PEM; ``files`` how many files are signed.
    ``public_key`` is the file of a key pair that was made for this signature.
    """

    schema_version: int = SCHEMA_VERSION
    bundle: str
    digest: str
    key: str
    files: int
    public_key: str = ""


def sign_bundle(
    path: Path, key: Path, *, password: str | None = None, public_key: Path | None = None
) -> SignatureReport:
    """Check every file of a bundle, and sign all of them; an older signature is replaced in one step.

    Raises:
        IntegrityError: a damaged bundle.
        SignatureError: it holds a symbolic link, or was changed while it was signed.
        UsageError: a key that cannot sign.
        MissingDependencyError: the extra ``sign`` is not installed.
    """
    require("model_signing", to="sign a bundle", extra="sign")
    from vggdeploy.bundle.signature import make_signature, signed_hashes

    bundle = Bundle.open(path, trust=())  # it is signed because nobody can trust it yet
    manifest = hashlib.sha256(read_regular(path / MANIFEST_NAME, limit=2**30)).hexdigest()
    signature = make_signature(path, key, password)
    signed = signed_hashes(signature)
    checked = {record.path: record.sha256 for record in bundle.manifest.files}
    if any(signed.get(name) != sha256 for name, sha256 in {**checked, MANIFEST_NAME: manifest}.items()):
        raise SignatureError(f"{path} was changed while it was signed", "run this command again")
    atomic_write(path / SIGNATURE_NAME, signature)
    return _report(bundle, signature, str(public_key or ""))


def check_bundle(path: Path, asked: tuple[SignerRule, ...]) -> SignatureReport:
    """Open a bundle as `Bundle.open` does with these rules, and say who signed it.

    Raises:
        SignatureError: the signature is not there, is of another key, or is not that of these files.
    """
    return _report(Bundle.open(path, trust=asked), read_signature(path))


def _report(bundle: Bundle, signature: bytes, public_key: str = "") -> SignatureReport:
    from vggdeploy.bundle.signature import signed_hashes

    return SignatureReport(
        bundle=str(bundle.root),
        digest=bundle.manifest.digest,
        key=key_named_in(signature),
        files=len(signed_hashes(signature)),
        public_key=public_key,
    )
