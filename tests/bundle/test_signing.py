"""Signed bundles: made and checked with model-signing itself, and attacked in every way that a writer of files has."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import vggdeploy
from vggdeploy.bundle import MANIFEST_NAME, Bundle, update_bundle
from vggdeploy.bundle.manifest import parse_manifest, seal
from vggdeploy.bundle.sign import check_bundle, sign_bundle
from vggdeploy.bundle.signature import new_key
from vggdeploy.bundle.trust import POLICY_VARIABLE, SIGNATURE_NAME, Trust, signer_rules
from vggdeploy.errors import IntegrityError, SignatureError, UsageError
from vggdeploy.system.files import sha256_of


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``release.pem`` and ``release.pub``, and a pair of somebody else."""
    home = tmp_path_factory.mktemp("keys")
    for name in ("release", "other"):
        new_key(home / f"{name}.pem")
    return home


@pytest.fixture
def signed(own_bundle: Path, keys: Path) -> Path:
    sign_bundle(own_bundle, keys / "release.pem")
    return own_bundle


def refused(bundle: Path, *trusted: Path) -> str:
    """`vggdeploy.load` refuses it, and no library is asked to open a byte of it; returns the cause."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SignatureError) as caught:
        patch.setattr("vggdeploy.engine.loading.open_session", lambda *a, **k: pytest.fail("a library saw the bytes"))
        vggdeploy.load(bundle, trust=Trust(trusted))
    assert caught.value.exit_code == 1
    assert caught.value.hint
    return caught.value.cause


def test_a_signed_bundle_loads_and_answers(signed: Path, keys: Path) -> None:
    with vggdeploy.load(signed, trust=Trust([keys / "other.pub", keys / "release.pub"])) as engine:
        assert engine.run({"image": np.zeros((1, 32, 32, 1), np.uint8)})["logits"].shape == (1, 10)
        assert engine.bundle.signer == check_bundle(signed, signer_rules(Trust([keys / "release.pub"]))).key


def test_model_signing_s_own_command_accepts_it(signed: Path, keys: Path) -> None:
    arguments = ["--signature", signed / SIGNATURE_NAME, "--public_key", keys / "release.pub", signed]
    tool = Path(sys.executable).with_name("model_signing")
    done = subprocess.run([tool, "verify", "key", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_bundle_that_model_signing_s_own_command_signed_is_accepted(own_bundle: Path, keys: Path) -> None:
    arguments = ["--signature", own_bundle / SIGNATURE_NAME, "--private_key", keys / "release.pem", own_bundle]
    tool = Path(sys.executable).with_name("model_signing")
    done = subprocess.run([tool, "sign", "key", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert check_bundle(own_bundle, signer_rules(Trust([keys / "release.pub"]))).files > 5


def test_a_reload_asks_for_the_same_signature(signed: Path, keys: Path, tmp_path: Path) -> None:
    unsigned = Path(shutil.copytree(signed, tmp_path / "unsigned"))
    (unsigned / SIGNATURE_NAME).unlink()
    with vggdeploy.load(signed, trust=Trust([keys / "release.pub"])) as engine:
        with pytest.raises(SignatureError, match="is not signed"):
            engine.reload(unsigned)
        engine.reload(signed)
        assert engine.bundle.root == signed


def test_a_copy_under_another_name_and_behind_a_link_is_still_signed(signed: Path, keys: Path, tmp_path: Path) -> None:
    shutil.copytree(signed, tmp_path / "elsewhere")
    (tmp_path / "current").symlink_to("elsewhere")
    vggdeploy.load(tmp_path / "current", trust=Trust([keys / "release.pub"])).close()


def test_an_unsigned_bundle_is_refused(own_bundle: Path, keys: Path) -> None:
    assert "is not signed" in refused(own_bundle, keys / "release.pub")


def test_another_key_is_refused_by_name(signed: Path, keys: Path) -> None:
    assert "which the list of trusted keys does not name (only other.pub" in refused(signed, keys / "other.pub")


def alter(bundle: Path) -> None:
    """One bit of a model, and a manifest that fits it: every hash and the digest are right again."""
    model = bundle / "variants/onnx-fp32/model.onnx"
    data = bytearray(model.read_bytes())
    data[-5] ^= 1
    model.write_bytes(data)
    manifest = parse_manifest((bundle / MANIFEST_NAME).read_bytes(), where="x")
    files = tuple(
        msgspec.structs.replace(f, sha256=sha256_of(model)) if f.path.endswith("onnx-fp32/model.onnx") else f
        for f in manifest.files
    )
    (bundle / MANIFEST_NAME).write_bytes(seal(msgspec.structs.replace(manifest, files=files)))


def alter_the_model_alone(bundle: Path) -> None:
    with (bundle / "variants/onnx-fp32/model.onnx").open("ab") as file:
        file.write(b"\0")


def swap_in_another_checkpoint(bundle: Path) -> None:
    (bundle / "checkpoint/model.safetensors").write_bytes(b"other weights")


def link_out(bundle: Path) -> None:
    model = bundle / "variants/onnx-fp32/model.onnx"
    model.rename(bundle.parent / "outside.onnx")
    model.symlink_to(bundle.parent / "outside.onnx")


def link_a_directory(bundle: Path) -> None:
    (bundle / "variants").rename(bundle.parent / "variants")
    (bundle / "variants").symlink_to(bundle.parent / "variants")


ATTACKS: dict[str, Callable[[Path], object]] = {
    "an altered model with a manifest that fits": alter,
    "an altered model": alter_the_model_alone,
    "an altered manifest": lambda b: (b / MANIFEST_NAME).write_bytes((b / MANIFEST_NAME).read_bytes() + b"\n"),
    "other weights": swap_in_another_checkpoint,
    "a file more": lambda b: (b / "variants/extra.so").write_bytes(b"x"),
    "a file that git would ignore": lambda b: (b / ".gitattributes").write_bytes(b"x"),
    "a file less": lambda b: (b / "checkpoint/checkpoint.json").unlink(),
    "a file moved": lambda b: (b / "golden/outputs/logits.npy").rename(b / "golden/logits.npy"),
    "a link to the same bytes": link_out,
    "a link to the same directory": link_a_directory,
    "a pipe": lambda b: os.mkfifo(b / "pipe"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_was_changed_after_signing_is_refused(name: str, signed: Path, keys: Path) -> None:
    ATTACKS[name](signed)
    cause = refused(signed, keys / "release.pub")
    assert "is not what was signed" in cause or "symbolic link" in cause


def edited(signature: bytes, edit: Callable[[dict[str, object]], object]) -> bytes:
    document = json.loads(signature)
    edit(document)
    return json.dumps(document).encode()


def with_payload(signature: bytes, manifest: bytes) -> bytes:
    """The signed list with another hash for the manifest: the signature over it stays as it was."""
    document = json.loads(signature)
    payload = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    for resource in payload["predicate"]["resources"]:
        if resource["name"] == MANIFEST_NAME:
            resource["digest"] = hashlib.sha256(manifest).hexdigest()
    document["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    return json.dumps(document).encode()


FORGERIES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda s: b"",
    "cut in the middle": lambda s: s[: len(s) // 2],
    "cut by one byte": lambda s: s[:-1],
    "not JSON": lambda s: b"\x80\x04pickle",
    "a list": lambda s: b"[]",
    "another list of files": lambda s: with_payload(s, b"{}"),
    "no signature in it": lambda s: edited(s, lambda d: d["dsseEnvelope"].update(signatures=[])),  # type: ignore[attr-defined]
    "no envelope": lambda s: edited(s, lambda d: d.pop("dsseEnvelope")),
    "no key": lambda s: edited(s, lambda d: d["verificationMaterial"]["publicKey"].pop("hint")),  # type: ignore[index]
    "a key of another kind": lambda s: edited(s, lambda d: d["verificationMaterial"]["publicKey"].update(hint=[1])),  # type: ignore[index]
    "deep": lambda s: b"[" * 200_000,
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_signature_is_refused(name: str, signed: Path, keys: Path) -> None:
    file = signed / SIGNATURE_NAME
    file.write_bytes(FORGERIES[name](file.read_bytes()))
    assert refused(signed, keys / "release.pub")


def test_any_flipped_byte_of_a_signature_is_refused_or_changes_nothing(signed: Path, keys: Path) -> None:
    """2 flips that mean nothing are possible: white space, and the unused bits of base64's last letter."""
    file = signed / SIGNATURE_NAME
    good = file.read_bytes()
    random = np.random.default_rng(1)
    accepted = 0
    for place in random.choice(len(good), 40, replace=False):
        data = bytearray(good)
        data[place] ^= 1 << int(random.integers(7))
        file.write_bytes(data)
        try:
            Bundle.open(signed, trust=signer_rules(Trust([keys / "release.pub"])))
            accepted += 1
        except SignatureError:
            pass
    assert accepted <= 1


def test_a_signature_of_another_bundle_is_refused(signed: Path, keys: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(signed, other)
    (other / SIGNATURE_NAME).unlink()
    with update_bundle(Bundle.open(other)) as draft:
        draft.manifest = msgspec.structs.replace(
            parse_manifest((other / MANIFEST_NAME).read_bytes(), where="x"), name="b"
        )
    sign_bundle(other, keys / "release.pem")
    shutil.copyfile(other / SIGNATURE_NAME, signed / SIGNATURE_NAME)
    assert "is not what was signed" in refused(signed, keys / "release.pub")


def test_a_signature_that_claims_a_trusted_key_is_checked_with_it(signed: Path, keys: Path) -> None:
    """Signed by the other key, and named as if by the trusted one."""
    file = signed / SIGNATURE_NAME
    trusted = check_bundle(signed, signer_rules(Trust([keys / "release.pub"]))).key
    sign_bundle(signed, keys / "other.pem")
    file.write_bytes(edited(file.read_bytes(), lambda d: d["verificationMaterial"]["publicKey"].update(hint=trusted)))  # type: ignore[index]
    assert "has a signature that was not made with release.pub" in refused(signed, keys / "release.pub")


def test_a_manifest_that_changes_while_it_is_checked_is_refused(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that are used are those that were signed, even if the file had other bytes when it was read."""
    read = Path(signed / MANIFEST_NAME).read_bytes() + b"\n"
    monkeypatch.setattr("vggdeploy.bundle.store._read_manifest", lambda root: read)
    with pytest.raises(SignatureError, match="changed while the signature was checked"):
        Bundle.open(signed, trust=signer_rules(Trust([keys / "release.pub"])))


def test_sign_refuses_a_damaged_bundle(own_bundle: Path, keys: Path) -> None:
    alter_the_model_alone(own_bundle)
    with pytest.raises(IntegrityError):
        sign_bundle(own_bundle, keys / "release.pem")
    assert not (own_bundle / SIGNATURE_NAME).exists()


def test_sign_refuses_a_link(own_bundle: Path, keys: Path) -> None:
    (own_bundle / "notes").symlink_to("/etc/hostname")
    with pytest.raises(SignatureError, match="symbolic link: notes"):
        sign_bundle(own_bundle, keys / "release.pem")


def test_a_changed_bundle_is_not_signed_any_more_and_says_so(
    signed: Path, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vggdeploy"), update_bundle(Bundle.open(signed)):
        pass
    assert not (signed / SIGNATURE_NAME).exists()
    assert "is not signed any more: vggdeploy sign" in caplog.text
    assert SIGNATURE_NAME not in {f.path for f in Bundle.open(signed).manifest.files}
    sign_bundle(signed, keys / "release.pem")
    check_bundle(signed, signer_rules(Trust([keys / "release.pub"])))


def test_a_new_key_pair_is_the_owners_and_replaces_nothing(tmp_path: Path) -> None:
    public = new_key(tmp_path / "release.pem")
    assert public == tmp_path / "release.pub"
    assert stat.S_IMODE((tmp_path / "release.pem").stat().st_mode) == 0o600
    before = (tmp_path / "release.pem").read_bytes()
    with pytest.raises(UsageError, match="is taken"):
        new_key(tmp_path / "release.pem")
    (tmp_path / "release.pem").unlink()
    with pytest.raises(UsageError, match="is taken"):  # a public key that somebody relies on
        new_key(tmp_path / "release.pem")
    assert b"PRIVATE KEY" in before


def test_an_encrypted_key_signs_with_its_password_alone(own_bundle: Path, tmp_path: Path) -> None:
    public = new_key(tmp_path / "safe.pem", "correct horse")
    assert b"ENCRYPTED" in (tmp_path / "safe.pem").read_bytes()
    for wrong in (None, "battery"):
        with pytest.raises(UsageError, match="cannot be opened as a private key"):
            sign_bundle(own_bundle, tmp_path / "safe.pem", password=wrong)
    sign_bundle(own_bundle, tmp_path / "safe.pem", password="correct horse")  # noqa: S106
    check_bundle(own_bundle, signer_rules(Trust([public])))


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_a_file_that_is_no_key_is_named(own_bundle: Path, keys: Path, tmp_path: Path) -> None:
    wrong = {
        "missing.pem": None,
        "text.pem": b"hello",
        "rsa.pem": pem(rsa.generate_private_key(65537, 2048)),
        "curve.pem": pem(ec.generate_private_key(ec.SECP256K1())),
        "public.pem": (keys / "release.pub").read_bytes(),
    }
    for name, data in wrong.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=name):
            sign_bundle(own_bundle, tmp_path / name)
    sign_bundle(own_bundle, keys / "release.pem")
    wrong_keys = [tmp_path / name for name in wrong if name != "public.pem"]
    for path in (*wrong_keys, keys / "release.pem"):
        with pytest.raises(SignatureError, match=f"the trusted key .*{path.name}"):
            Bundle.open(own_bundle, trust=signer_rules(Trust([path])))


@pytest.mark.parametrize(
    "text",
    [
        "trusted_keys = [",
        "",
        "schema_version = 1",
        "schema_version = 1\ntrusted_keys = []",
        "schema_version = 1\ntrusted_keys = 'release.pub'",
        "schema_version = 1\ntrusted_keys = [7]",
        "schema_version = 2\ntrusted_keys = ['release.pub']",
        "schema_version = 1\ntrusted_keys = ['release.pub']\nallow_unsigned = true",
        "schema_version = 1\ntrusted_keys = ['missing.pub']",
        "\udce4",
    ],
)
def test_a_policy_that_cannot_be_followed_lets_nothing_through(text: str, signed: Path, keys: Path) -> None:
    policy = keys / "policy.toml"
    policy.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SignatureError):
        vggdeploy.load(signed, trust=Trust(policy=policy))


def test_a_policy_of_the_environment_holds_everywhere_and_cannot_be_loosened(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = keys / "machine.toml"
    policy.write_text("schema_version = 1\ntrusted_keys = ['other.pub']")
    vggdeploy.load(signed, trust=Trust([keys / "release.pub"])).close()
    monkeypatch.setenv(POLICY_VARIABLE, str(policy))
    for arguments in ({}, {"trust": Trust([keys / "release.pub"])}):
        with pytest.raises(SignatureError, match="which the policy"):
            vggdeploy.load(signed, **arguments)  # type: ignore[arg-type]
    with pytest.raises(SignatureError, match="which the policy"):
        Bundle.open(signed)
    monkeypatch.setenv(POLICY_VARIABLE, str(keys / "gone.toml"))
    with pytest.raises(SignatureError, match="cannot be read"):
        Bundle.open(signed)
    policy.write_text("schema_version = 1\ntrusted_keys = ['other.pub', 'release.pub']")
    monkeypatch.setenv(POLICY_VARIABLE, str(policy))
    Bundle.open(signed)


@pytest.mark.parametrize("none", [[], (), "release.pub"])
def test_an_empty_list_of_keys_is_no_way_to_trust_everything(none: list[str], signed: Path) -> None:
    with pytest.raises(UsageError, match="names no key"):
        vggdeploy.load(signed, trust=Trust(none))


def test_a_trust_that_asks_for_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="neither keys nor a policy"):
        Trust()


def test_without_model_signing_a_demand_says_which_extra_is_missing(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggdeploy.system.optional.installed", lambda module: False)
    with pytest.raises(vggdeploy.MissingDependencyError, match=r"vggdeploy\[sign\]"):
        Bundle.open(signed, trust=signer_rules(Trust([keys / "release.pub"])))
    Bundle.open(signed, trust=())
