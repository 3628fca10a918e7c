"""``vggdeploy package`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vggdeploy.cli.app import run
from vggdeploy.package.base import MARKER, TARGETS


def test_json_is_one_document_with_the_path_and_the_record(
    bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "repository"
    assert run(["package", str(bundle_dir), "--target", "triton", "-o", str(target), "--name", "d", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["path"] == str(target)
    assert shown["package"] == json.loads((target / MARKER).read_bytes())


@pytest.mark.parametrize("target", [t.name for t in TARGETS])
def test_what_is_not_its_own_is_never_replaced(target: str, bundle_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    arguments = ["package", str(bundle_dir), "--target", target, "-o", str(tmp_path / "mine"), "--force"]
    assert run(arguments) == 2
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_its_own_is_replaced_with_force_alone(bundle_dir: Path, tmp_path: Path) -> None:
    arguments = ["package", str(bundle_dir), "--target", "triton", "-o", str(tmp_path / "r"), "--name", "d"]
    assert run(arguments) == 0
    assert run([*arguments, "--variant", "torchscript-fp32"]) == 2
    assert (tmp_path / "r/d/1/model.onnx").is_file()
    assert run([*arguments, "--variant", "torchscript-fp32", "--force"]) == 0
    assert [p.name for p in (tmp_path / "r/d/1").iterdir()] == ["model.pt"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--target", "slm"], 2, "did you mean 'slim'"),
        (["--target", "slim", "--name", "x"], 2, "--name means nothing to the target slim"),
        (["--target", "slim", "--max-batch", "4"], 2, "--max-batch means nothing"),
        (["--target", "slim", "--variant", "onnx-fp32", "--variant", "onnx-fp16"], 2, "takes one variant, not 2"),
        (["--target", "slim", "--variant", "torch-fp32"], 2, "does not take torch-fp32"),
    ],
)
def test_a_wrong_call_gets_its_cause(
    bundle_dir: Path, tmp_path: Path, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["package", str(bundle_dir), "-o", str(tmp_path / "out"), *arguments]) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_bundle_is_not_packed(own_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = own_bundle / "variants/onnx-fp32/model.onnx"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)
    for target in ("triton", "slim"):
        out = tmp_path / target
        arguments = ["package", str(own_bundle), "--target", target, "--variant", "onnx-fp32", "-o", str(out)]
        assert run(arguments) == 1
        assert "altered" in capsys.readouterr().err
        assert not out.exists()
