"""Signatures over a whole bundle, made and checked by OpenSSF model-signing with elliptic-curve keys that lie in files.

The format is the OpenSSF Model Signing (OMS) one: ``model_signing verify key`` reads it too. Nothing is asked of a network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing, verifying

from vggdeploy.bundle.manifest import MANIFEST_NAME
from vggdeploy.bundle.trust import SIGNATURE_NAME, SignerRule, key_named_in, read_signature
from vggdeploy.errors import IncompatibleError, SignatureError, UsageError, first_line
from vggdeploy.system.files import read_regular

_CURVES = ("secp256r1", "secp384r1", "secp521r1")  # those that model-signing takes
_MAX_KEY = 2**20
_SOURCE = "do not use this bundle; get it again from its source"


def verify_signature(root: Path, manifest: bytes, rule: SignerRule) -> str:
    """Check that one of the trusted keys signed exactly the files that lie in ``root``; returns its fingerprint.

    ``manifest`` are the bytes of ``manifest.json`` as the caller read them. As the manifest holds the hash of every file,
    what is checked against it later, when it is used, is what was signed, whatever happens to the files in between.

    Raises:
        SignatureError: it is not so, or a key cannot be read.
    """
    signature = read_signature(root)
    named = key_named_in(signature)
    keys = {fingerprint(_public_key(path)): path for path in rule.keys}
    if named not in keys:
        asked = ", ".join(f"{path.name} ({print_[:12]}…)" for print_, path in keys.items())
        raise SignatureError(
            f"{root} is signed by the key {named[:12]}…, which {rule.source} does not name (only {asked})",
            "get the bundle from its source, or trust that key too",
        )
    _refuse_links(root)
    with _in_memory(signature) as copy:
        checker = verifying.Config().use_elliptic_key_verifier(public_key=keys[named])
        try:
            checker.set_hashing_config(_hashing()).verify(root.resolve(), copy)
        except InvalidSignature:
            raise SignatureError(f"{root} has a signature that was not made with {keys[named].name}", _SOURCE) from None
        except Exception as error:  # a hostile signature can drive the parsers into any error there is
            cause = textwrap.shorten(first_line(error).removeprefix("Signature mismatch: "), 300)
            raise SignatureError(f"{root} is not what was signed: {cause}", _SOURCE) from error
    if signed_hashes(signature).get(MANIFEST_NAME) != hashlib.sha256(manifest).hexdigest():
        raise SignatureError(f"the manifest of {root} changed while the signature was checked", "open it again")
    return named


def make_signature(root: Path, key: Path, password: str | None = None) -> bytes:
    """The bytes of a signature over every file in ``root`` but an older signature.

    Raises:
        SignatureError: a symbolic link or a special file lies there.
        UsageError: as `private_key`.
    """
    private_key(key, password)
    _refuse_links(root)
    secret: Any = password.encode() if password is not None else None  # the library hands it on as it is: bytes
    with _in_memory(b"") as file:
        signer = signing.Config().use_elliptic_key_signer(private_key=key, password=secret)
        try:
            signer.set_hashing_config(_hashing()).sign(root.resolve(), file)
        except ValueError as error:
            raise SignatureError(
                f"{root} cannot be signed: {first_line(error)}", "remove what is not a regular file"
            ) from error
        return file.read_bytes()


def signed_hashes(signature: bytes) -> Mapping[str, str]:
    """File → SHA-256, as a signature that was checked has them."""
    payload = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    return {r["name"]: r["digest"] for r in payload["predicate"]["resources"] if r["algorithm"] == "sha256"}


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the public key's PEM: what model-signing writes into a signature as the key's name."""
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def private_key(path: Path, password: str | None = None) -> ec.EllipticCurvePrivateKey:
    """The key to sign with.

    Raises:
        UsageError: it cannot be read, is of another kind, or its password is missing or wrong.
    """
    try:
        key = serialization.load_pem_private_key(
            read_regular(path, limit=_MAX_KEY), password.encode() if password is not None else None
        )
    except OSError as error:
        raise UsageError(
            f"the key {path} cannot be read: {error.strerror}", "give a private key, or make one: --new-key FILE"
        ) from error
    except (ValueError, TypeError) as error:  # the latter: a password where there is none to give, or none given
        raise UsageError(
            f"{path} cannot be opened as a private key: {first_line(error)}",
            "give a PEM file; the password of an encrypted one stands in VGGDEPLOY_KEY_PASSWORD",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise UsageError(f"{path} is not an elliptic-curve key on {', '.join(_CURVES)}", "make one: --new-key FILE")
    return key


def new_key(path: Path, password: str | None = None) -> Path:
    """Make a P-256 key pair: the private key at ``path``, for its owner's eyes only, and the public one beside it.

    Returns the path of the public key: ``path`` with the suffix ``.pub``.

    Raises:
        UsageError: one of the two files is there already.
    """
    public = path.with_suffix(".pub")
    for taken in (path, public):
        if taken.exists() or path == public:
            raise UsageError(f"{taken} is taken", "give a new file for the private key, such as release.pem")
    key = ec.generate_private_key(ec.SECP256R1())
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password.encode())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    _create(path, key.private_bytes(pem, pkcs8, encryption), 0o600)
    try:
        _create(public, key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo), 0o644)
    except BaseException:
        path.unlink()
        raise
    return public


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a file that was not there; nobody else can have opened it meanwhile."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
    except BaseException:
        path.unlink()
        raise


def _public_key(path: Path) -> ec.EllipticCurvePublicKey:
    fix = "give the PEM file of an elliptic-curve public key, as vggdeploy sign --new-key makes it"
    try:
        key = serialization.load_pem_public_key(read_regular(path, limit=_MAX_KEY))
    except OSError as error:
        raise SignatureError(f"the trusted key {path} cannot be read: {error.strerror}", fix) from error
    except Exception as error:  # the parser's: ValueError mostly, its own kinds for what it does not support
        raise SignatureError(f"the trusted key {path} is not a public key: {first_line(error)}", fix) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise SignatureError(f"the trusted key {path} is not on {', '.join(_CURVES)}", fix)
    return key


def _hashing() -> hashing.Config:
    """Every file, those of git too (which model-signing leaves out by default), with SHA-256; no symbolic links."""
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME], ignore_git_paths=False)


def _refuse_links(root: Path) -> None:
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            if (path := Path(directory, name)).is_symlink():
                raise SignatureError(f"{root} holds a symbolic link: {path.relative_to(root)}", _SOURCE)


@contextmanager
def _in_memory(data: bytes) -> Iterator[Path]:
    """A file that is in memory alone: nobody can exchange it, and a read-only container needs no place for it."""
    if not hasattr(os, "memfd_create"):
        raise IncompatibleError("signatures are checked in memory that only Linux has", "load a signed bundle on Linux")
    fd = os.memfd_create("signature")
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(data)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
