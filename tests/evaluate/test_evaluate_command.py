"""``vggdeploy evaluate``, as it is typed: what it prints, what it writes, and how a slip is answered."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import msgspec
import pytest

from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.cli import tables
from vggdeploy.cli.app import run
from vggdeploy.evaluate.scores import Scores, macro
from vggdeploy.records import from_json
from vggdeploy.records.evaluation import EvaluationReport

SCRIPT = "<script>alert(1)</script>"


def report_of(scores: Scores, labels: tuple[str, ...]) -> EvaluationReport:
    classes = scores.class_scores(labels)
    return EvaluationReport(
        target="t", variant="v", backend="b", device="cpu", sha256="", dataset="d", split="test",
        accuracy=scores.accuracy, top5=scores.top5, loss=scores.loss, calibration_error=scores.calibration_error,
        balanced_accuracy=macro([c.recall for c in classes]), macro_f1=0.0, classes=classes,
        confusion=scores.confusion(), confused=scores.confused(), seconds=0.0, created="",
    )  # fmt: skip


def test_it_prints_the_accuracy_its_interval_each_class_and_the_matrix(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"\d+ of 359 images right", shown.splitlines()[0])
    assert re.search(r"│ +\d+\.\d\d% \(\d+\.\d\d%–\d+\.\d\d%\) +│", shown)
    assert "Clopper–Pearson" in shown
    assert re.search(r"^8 │ 8 +│ +35 │ +\d+\.\d\d% │ +\d+\.\d\d% │ +\d+\.\d\d%", shown, re.MULTILINE)
    assert "confusion matrix" in shown
    assert "digits test (359 images)" in shown


def test_json_is_one_document_and_the_written_one_is_the_same(
    bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "evaluation"
    assert run(["evaluate", str(bundle_dir), "--backend", "onnxruntime", "--json", "-o", str(target)]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["schema_version"] == 2
    assert (target / "evaluation.json").read_text() == printed
    report = from_json(printed.encode(), EvaluationReport, what="report")
    assert (report.backend, report.accuracy.samples) == ("onnxruntime", 359)
    assert sorted(p.name for p in target.iterdir()) == ["confusion.html", "confusion.png", "evaluation.json"]
    page = (target / "confusion.html").read_text()
    assert f"{report.accuracy.hits:,} of 359 images" in page
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    assert body.count("<tr>") == 10  # the numbers of each class stand beside the picture


def test_an_older_report_is_replaced_only_when_asked(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["evaluate", str(checkpoint), "--samples", "10", "-o", str(tmp_path / "evaluation")]
    assert run(line) == 0
    assert run(line) == 2
    assert "--force" in capsys.readouterr().err
    assert run([*line, "--force"]) == 0
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run([*line[:-1], str(tmp_path), "--force"]) == 2
    assert (tmp_path / "thesis.tex").exists()


def test_names_from_a_bundle_stay_text(own_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = Bundle.open(own_bundle)
    with update_bundle(opened) as draft:
        draft.manifest = msgspec.structs.replace(opened.manifest, labels=(SCRIPT, "[red]x[/]", "a\x1b[2Jb", *"3456789"))
    assert run(["evaluate", str(own_bundle), "--samples", "60", "-o", str(tmp_path / "e")]) == 0
    shown = capsys.readouterr()
    assert SCRIPT in shown.out
    assert "[red]x[/]" in shown.out
    assert "\x1b" not in shown.out + shown.err
    assert "matched by their order" in shown.err
    assert SCRIPT not in (tmp_path / "e" / "confusion.html").read_text()


def test_many_classes_are_shown_by_their_confusions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    from vggdeploy.report.pictures import write_confusion

    scores = Scores(120)
    scores.update({"logits": np.roll(np.eye(120, dtype=np.float32), 1, axis=1)[:40]}, np.arange(40))
    report = report_of(scores, ("cat",) * 120)
    tables.evaluation_table(report)
    shown = capsys.readouterr().out
    assert "the 50 of 120 classes with the lowest F1" in shown
    assert "most frequent confusions" in shown
    assert "0 cat" in shown
    assert "confusion matrix" not in shown
    assert [p.name for p in write_confusion(report, tmp_path)] == ["confusion.png", "confusion.html"]
    assert "cat (0) → cat (1)" in (tmp_path / "confusion.html").read_text()


def test_without_the_extra_nothing_is_computed_first(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vggdeploy.report.pictures.require", missing)
    assert run(["evaluate", str(tmp_path / "none"), "-o", str(tmp_path / "e")]) == 5
    assert "vggdeploy[plots]" in capsys.readouterr().err
    assert run(["evaluate", str(checkpoint), "--samples", "5"]) == 0  # the figures need no pictures


def missing(module: str, **_: str) -> None:
    from vggdeploy.errors import MissingDependencyError

    raise MissingDependencyError(f"'{module}' is not installed", "pip install 'vggdeploy[plots]'")


@pytest.mark.parametrize(
    ("line", "code", "answer"),
    [
        ("evaluate CKPT --dataset fashion-minst", 2, "did you mean 'fashion-mnist'"),
        ("evaluate CKPT --split tset", 2, "did you mean 'test'"),
        ("evaluate CKPT --samples none", 2, "or all"),
        ("evaluate CKPT --samples 0", 2, "at least 1"),
        ("evaluate CKPT --samples ²", 2, "or all"),
        ("evaluate CKPT --backend onnxruntim", 2, "did you mean 'onnxruntime'"),
        ("evaluate CKPT --backend onnxruntime", 2, "vggdeploy export"),
        ("evaluate CKPT --device tpu", 2, "cpu, cuda"),
        ("evaluate CKPT --device cuda", 5, "--device cpu"),
        ("evaluate CKPT --threads 0", 2, "at least 1"),
        ("evaluate CKPT --sample 3", 2, "--samples"),
        ("evaluate none", 1, "does not exist"),
        ("evaluate .", 1, "neither a bundle nor a checkpoint"),
        ("evaluate", 2, "TARGET"),
    ],
)
def test_a_slip_is_one_line_and_what_to_type(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    code: int,
    answer: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(shlex.split(line.replace("CKPT", str(checkpoint)))) == code
    said = capsys.readouterr()
    assert answer in said.err
    assert len(said.err.strip().splitlines()) == 2
    assert said.out == ""
