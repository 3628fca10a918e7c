"""``vggdeploy sign`` and ``verify-signature`` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vggdeploy.bundle.trust import POLICY_VARIABLE, SIGNATURE_NAME
from vggdeploy.cli.app import run


def test_sign_with_a_new_key_then_verify_then_enforce(
    own_bundle: Path,
    digit_png: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle, key = str(own_bundle), str(tmp_path / "release.pem")
    assert run(["sign", bundle, "--new-key", key, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["public_key"] == str(tmp_path / "release.pub")
    assert run(["verify-signature", bundle, "--key", made["public_key"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**made, "public_key": ""}
    (tmp_path / "policy.toml").write_text('schema_version = 1\ntrusted_keys = ["release.pub"]\n')
    monkeypatch.setenv(POLICY_VARIABLE, str(tmp_path / "policy.toml"))
    assert run(["predict", bundle, str(digit_png)]) == 0
    assert run(["verify-signature", bundle]) == 0
    assert run(["sign", bundle, "--key", key]) == 0  # again, in place of the old one
    (own_bundle / SIGNATURE_NAME).unlink()
    capsys.readouterr()
    for command in (["predict", bundle, str(digit_png)], ["inspect", bundle], ["verify-signature", bundle]):
        assert run(command) == 1
        shown = capsys.readouterr()
        assert "is not signed" in shown.err
        assert not shown.out


def test_a_recorded_verdict_takes_the_signature_away_and_says_so(
    own_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, key = str(own_bundle), str(tmp_path / "release.pem")
    assert run(["sign", bundle, "--new-key", key]) == 0
    assert run(["verify", bundle, "--variant", "onnx-fp32", "--samples", "50"]) in (0, 4)
    assert (own_bundle / SIGNATURE_NAME).is_file()
    assert run(["verify", bundle, "--variant", "onnx-fp32", "--samples", "50", "--record"]) in (0, 4)
    assert "is not signed any more" in caplog.text
    assert run(["verify-signature", bundle, "--key", str(tmp_path / "release.pub")]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["sign"], 2, "signing needs exactly one key"),
        (["sign", "--key", "a.pem", "--new-key", "b.pem"], 2, "signing needs exactly one key"),
        (["sign", "--key", "a.pem"], 2, "a.pem cannot be read"),
        (["verify-signature"], 2, "no key is trusted"),
        (["verify-signature", "--key", "a.pub"], 1, "is not signed"),
        (["verify-signature", "--policy", "p.toml"], 1, "p.toml cannot be read"),
    ],
)
def test_a_wrong_call_gets_its_cause(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run([arguments[0], str(bundle_dir), *arguments[1:]]) == code
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_key_is_made_for_a_bundle_that_cannot_be_signed(own_bundle: Path, tmp_path: Path) -> None:
    (own_bundle / "checkpoint/checkpoint.json").write_bytes(b"{}")
    assert run(["sign", str(own_bundle), "--new-key", str(tmp_path / "release.pem")]) == 1
    assert list(tmp_path.iterdir()) == [own_bundle]
