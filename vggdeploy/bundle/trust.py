"""Whose bundles are opened: the keys that the caller trusts, and those of the machine's policy file.

Nothing here needs a library; what checks a signature stands in `vggdeploy.bundle.signature`.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vggdeploy.errors import SignatureError, UsageError, first_line
from vggdeploy.records import Record
from vggdeploy.system.files import read_regular

SIGNATURE_NAME = "model.sig"
POLICY_VARIABLE = "VGGDEPLOY_POLICY"
SCHEMA_VERSION = 1
_MAX_SIGNATURE, _MAX_POLICY = 64 * 2**20, 2**20

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Trust:
    """Whose bundles the caller opens: those signed with one of its keys, and with one of its policy's keys.

        vggdeploy.load("artifacts/digits", trust=Trust(["release.pub"]))

    Attributes:
        keys: public keys (PEM files), of which one must have signed the bundle. Default: only the policy's.
        policy: a policy file that names such keys, see `read_policy`.

    Raises:
        UsageError: neither is given, or an empty list of keys, which nothing could satisfy.
    """

    keys: Sequence[StrPath] | None = None
    policy: StrPath | None = None

    def __post_init__(self) -> None:
        if self.keys is None and self.policy is None:
            raise UsageError(
                "Trust() names neither keys nor a policy", "give a list of public keys: keys=['release.pub']"
            )
        if self.keys is not None and (isinstance(self.keys, (str, os.PathLike)) or not self.keys):
            raise UsageError(
                "the list of trusted keys names no key", "give a list of public keys: keys=['release.pub']"
            )


@dataclass(frozen=True)
class SignerRule:
    """Public keys (PEM files), one of which must have signed a bundle. Errors name ``source`` as who asks for it."""

    keys: tuple[Path, ...]
    source: str


class _Policy(Record, frozen=True, kw_only=True):
    schema_version: int
    trusted_keys: tuple[str, ...]


def signer_rules(trust: Trust | None = None) -> tuple[SignerRule, ...]:
    """Every rule that a bundle has to satisfy: the keys given, the policy given, and the policy of the environment.

    They add up: a caller cannot loosen what ``VGGDEPLOY_POLICY`` asks for.

    Raises:
        SignatureError: a policy that cannot be read.
    """
    rules = []
    if trust is not None and trust.keys is not None:
        rules.append(SignerRule(tuple(map(Path, trust.keys)), "the list of trusted keys"))
    if trust is not None and trust.policy is not None:
        rules.append(read_policy(trust.policy))
    if given := os.environ.get(POLICY_VARIABLE):
        rules.append(read_policy(given))
    return tuple(rules)


def read_policy(path: StrPath) -> SignerRule:
    """A policy file: TOML with ``schema_version = 1`` and ``trusted_keys``, paths relative to the file.

    Raises:
        SignatureError: it cannot be read, does not parse, has an unknown field or names no key. Then nothing is opened.
    """
    file = Path(path)
    fix = f"mend it (schema_version = {SCHEMA_VERSION}, trusted_keys = ['release.pub']); until then nothing is opened"
    try:
        policy = msgspec.convert(tomllib.loads(read_regular(file, limit=_MAX_POLICY).decode()), _Policy)
    except OSError as error:
        raise SignatureError(f"the policy {file} cannot be read: {error.strerror}", fix) from error
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise SignatureError(f"the policy {file} cannot be read: {first_line(error)}", fix) from error
    if policy.schema_version != SCHEMA_VERSION:
        raise SignatureError(f"the policy {file} has schema version {policy.schema_version}", fix)
    if not policy.trusted_keys:
        raise SignatureError(f"the policy {file} names no key", fix)
    return SignerRule(tuple(file.parent / key for key in policy.trusted_keys), f"the policy {file}")


def read_signature(root: Path) -> bytes:
    """The bytes of a bundle's signature.

    Raises:
        SignatureError: there is none, or it cannot be read.
    """
    try:
        return read_regular(root / SIGNATURE_NAME, limit=_MAX_SIGNATURE)
    except (FileNotFoundError, NotADirectoryError):
        raise SignatureError(f"{root} is not signed", f"sign it: vggdeploy sign {root} --key KEY") from None
    except OSError as error:
        raise SignatureError(
            f"{root / SIGNATURE_NAME} cannot be read: {error.strerror}", "restore the bundle from its source"
        ) from error


def key_named_in(signature: bytes) -> str:
    """The fingerprint that a signature gives for its key. It is a claim, until the signature was checked with that key.

    Raises:
        SignatureError: it is no signature of this kind, or names no key.
    """
    try:
        named = json.loads(signature)["verificationMaterial"]["publicKey"]["hint"]
    except (ValueError, KeyError, TypeError, RecursionError):
        named = None
    if not isinstance(named, str) or not named:
        raise SignatureError(
            "the signature names no key: it is damaged, or was not made with one", "sign the bundle again"
        )
    return named
