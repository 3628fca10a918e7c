"""Results are told apart, of this schema version and the one before; what is none is one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_samples import bench, parity, proof, row, whole, write

from vggdeploy.cli.app import run
from vggdeploy.errors import InputError, VggdeployError
from vggdeploy.records import BenchReport, CpuRoof, ParityReport, to_json
from vggdeploy.records.evaluation import EvaluationReport
from vggdeploy.report.documents import read_document, read_results
from vggdeploy.report.write import write_report
from vggdeploy.types import Precision

V1 = Path(__file__).parents[1] / "fixtures" / "results-v1"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("parity", ParityReport),
        ("bench", BenchReport),
        ("bench-scenarios", BenchReport),
        ("evaluation", EvaluationReport),
    ],
)
def test_documents_of_version_1_still_open(name: str, kind: type[Any]) -> None:
    file = V1 / f"{name}.json"
    assert json.loads(file.read_bytes())["schema_version"] == 1
    assert isinstance(read_document(file), kind)


def test_speeds_that_an_earlier_version_wrote_in_giga_operations_are_read_in_tera_operations(tmp_path: Path) -> None:
    roof = CpuRoof(precision=Precision.FP32, tera_ops=0.25, side=1024, threads=2, library="ONNX Runtime 1.23")
    slow, fast = row("onnx-fp16", 2.0, (1, 1, 1)), row("onnx-fp32", 1.0, (2, 2, 2), tera_ops=0.125, roof_share=0.5)
    new = bench(slow, fast, roofs=(roof,))
    file = tmp_path / "old.json"
    text = to_json(new).decode()
    text = text.replace('"tera_ops": 0.25', '"giga_ops": 250').replace('"tera_ops": 0.125', '"giga_ops": 125.0')
    file.write_text(text.replace('"tera_ops": null', '"giga_ops": null'))
    assert "tera_ops" not in file.read_text()
    assert read_document(file) == new


@pytest.mark.parametrize("suffix", [".html", ".md", ".csv"])
def test_a_report_of_version_1_documents_says_what_they_lack(tmp_path: Path, suffix: str) -> None:
    write_report(sorted(V1.glob("*.json")), tmp_path / f"report{suffix}")
    text = (tmp_path / f"report{suffix}").read_text()
    assert "onnx-fp32" in text
    if suffix != ".csv":
        assert "Made before commands were recorded" in text
        assert "which an older vggdeploy made" in text


@pytest.mark.parametrize("name", ["parity", "bench", "evaluation"])
def test_a_newer_document_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    found = json.loads((V1 / f"{name}.json").read_bytes()) | {"schema_version": 99, "news": {}}
    file = tmp_path / "newer.json"
    file.write_text(json.dumps(found))
    assert run(["report", str(file), "-o", str(tmp_path / "report.md")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert "schema version 99; this vggdeploy reads up to version" in lines[0]
    assert "install a newer vggdeploy" in lines[1]
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is not JSON"),
        (b"\xff{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a result"),
        (b"{}", "is not a result"),
        (
            b'{"schema_version": 1, "files": []}',
            "is not a result of verify, bench, compare, evaluate, search or a GPU day",
        ),
        (b'{"schema_version": "1", "bundle": "b", "variants": []}', "is not a result of verify"),
        (b'{"schema_version": 1, "bundle": "b", "variants": [{}]}', "missing required field"),
        (b'{"schema_version": 1, "bundle": "b", "variants": [], "created": "c", "x": 1}', "unknown field `x`"),
    ],
    ids=map(str, range(9)),
)
def test_what_is_no_result_is_refused(tmp_path: Path, data: bytes, told: str) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(data)
    with pytest.raises(VggdeployError, match=told) as caught:
        read_document(file)
    assert caught.value.exit_code == 1
    assert caught.value.hint


def test_a_missing_file_a_directory_and_a_pipe_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_results([path])


def test_the_same_document_twice_counts_once(tmp_path: Path) -> None:
    (file,) = write(tmp_path, bench(row("onnx-fp32", 1.0, (1, 1, 1))))
    other = tmp_path / "copy.json"
    other.write_bytes(file.read_bytes())
    assert len(read_results([file, other, file]).documents) == 1


@pytest.mark.parametrize("name", ["report.pdf", "report", "report.html.txt"])
def test_another_format_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(["report", str(tmp_path / "none.json"), "-o", str(tmp_path / name)]) == 2
    assert ".html, .md, .csv" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_results_or_output_it_is_a_usage_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["report", "-o", str(tmp_path / "report.html")]) == 2
    assert run(["report", "x.json"]) == 2
    assert "--output" in capsys.readouterr().err


def test_json_says_what_the_first_screen_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = write(tmp_path, *whole())
    target = tmp_path / "report.md"
    assert run(["report", *map(str, sources), "-o", str(target), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"] == str(target)
    assert [light["verdict"] for light in found["lights"]] == ["pass", "pass", "inconclusive", "fail", "unproven"]
    apart = [(light["numerical"], light["bounds"]) for light in found["lights"]]
    assert apart == [("pass", "pass"), ("pass", "pass"), ("pass", "inconclusive"), (None, None), ("unproven", None)]
    assert "| onnx-fp16 | ? inconclusive | numerical pass; bounds inconclusive |" in target.read_text(encoding="utf-8")
    assert [take["label"] for take in found["recommended"]] == ["onnx-fp32"]
    assert found["command"].startswith("vggdeploy report ")


@pytest.mark.parametrize("suffix", [".html", ".md", ".csv"])
@pytest.mark.parametrize("odd", [{"p50_ms": 0.0, "quantiles_ms": (0.0,) * 101}, {"quantiles_ms": (1.0,)}])
def test_odd_numbers_do_not_stop_a_report(tmp_path: Path, odd: dict[str, Any], suffix: str) -> None:
    one = row("onnx-fp32", 1.0, (1, 1, 1), **odd)
    write_report(write(tmp_path, bench(one), parity(proof(one))), tmp_path / f"report{suffix}")


def test_the_html_needs_its_extra_and_the_others_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = write(tmp_path, *whole())
    monkeypatch.setattr("vggdeploy.system.optional.find_spec", lambda name: None)
    write_report(sources, tmp_path / "report.md")
    write_report(sources, tmp_path / "report.csv")
    with pytest.raises(VggdeployError) as caught:
        write_report(sources, tmp_path / "report.html")
    assert "vggdeploy[plots]" in caught.value.hint
