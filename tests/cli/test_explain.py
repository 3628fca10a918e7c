"""A bundle in plain words: what it is, what was proven, where, and what to do next, each of it true of the bundle."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.cli.app import app, run
from vggdeploy.records import ParityRecord
from vggdeploy.types import Verdict

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def told(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(["explain", str(path), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_a_proven_bundle_is_told_with_its_figures(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(bundle_dir, capsys)
    manifest = Bundle.open(bundle_dir, only=()).manifest
    text = " ".join(found["sections"]["What it is"])
    assert "vgg11_bn at 0.125 of its width, trained on digits" in text
    right = manifest.reference_accuracy
    assert right is not None
    assert f"{right.hits:,} of {right.samples:,} test images" in text
    proofs = found["sections"]["What was proven"]
    for variant in manifest.candidates():
        assert variant.parity is not None
        assert variant.parity.flips is not None
        [line] = [line for line in proofs if line.startswith(f"{variant.name}: ")]
        assert f"{variant.parity.flips.flips} of {variant.parity.flips.samples} answers" in line
    where = " ".join(found["sections"]["Where"])
    assert "Proven on this machine" in where
    assert "On this machine onnx-fp32 is taken" in where


def test_every_step_is_a_line_that_the_command_line_takes(
    bundle_dir: Path, digit_png: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = told(bundle_dir, capsys)["next"]
    assert {"predict", "bench", "serve", "inspect"} <= {line.split()[1] for _, line in steps}
    for _, line in steps:
        _, verb, *rest = shlex.split(line.replace("IMAGE", str(digit_png)))
        COMMANDS[verb].make_context(verb, rest)


def with_parity(path: Path, **changes: object) -> None:
    opened = Bundle.open(path)
    variant = opened.manifest.variant("onnx-fp16")
    record = msgspec.structs.replace(
        variant.parity or ParityRecord(variant="", backend="", device="", verdict=Verdict.FAIL)
    )
    changed = msgspec.structs.replace(variant, parity=msgspec.structs.replace(record, **changes))
    with update_bundle(opened) as draft:
        draft.manifest = opened.manifest.with_variants(changed)


@pytest.mark.parametrize(
    ("verdict", "words"),
    [(Verdict.FAIL, "FAILED, and is never taken: the reason"), (Verdict.INCONCLUSIVE, "too few images to be sure")],
)
def test_what_is_not_proven_is_never_told_as_proven(
    own_bundle: Path, verdict: Verdict, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    numerical = Verdict.FAIL if verdict is Verdict.FAIL else Verdict.PASS
    with_parity(own_bundle, verdict=verdict, numerical=numerical, bounds=verdict, reasons=("the reason",))
    proofs = told(own_bundle, capsys)["sections"]["What was proven"]
    assert not any("answers as it does" in line and "onnx-fp16" in line for line in proofs)
    [line] = [line for line in proofs if line.startswith("onnx-fp16")]
    assert words in line


def test_other_bytes_than_those_that_were_proven_are_not_told_as_proven(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_parity(own_bundle, sha256="0" * 64)
    proofs = told(own_bundle, capsys)["sections"]["What was proven"]
    [line] = [line for line in proofs if line.startswith("onnx-fp16")]
    assert "not proven yet: the proof on record is of other bytes" in line


def test_a_damaged_bundle_is_not_explained(own_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = own_bundle / "variants/onnx-fp16/model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert run(["explain", str(own_bundle)]) == 1
    assert "onnx-fp16" in capsys.readouterr().err


def test_it_reads_like_sentences(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", str(bundle_dir)]) == 0
    out = capsys.readouterr().out
    titles = [line for line in out.splitlines() if not line.startswith(" ")]
    assert titles == ["What it is", "What was proven", "Where", "What to do next"]
    sentences = [line for line in out.partition("What to do next")[0].splitlines() if line.startswith("  ")]
    assert all(line.endswith(".") for line in sentences), sentences
