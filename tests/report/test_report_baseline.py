"""A report against an earlier bench: each variant's change, and what nobody can tell."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import msgspec
import pytest
from report_samples import bench, row, whole, write

from vggdeploy.cli.app import run
from vggdeploy.records import BenchReport


def rounds(p50: float, spread: float) -> tuple[float, ...]:
    return tuple(p50 * (1 + spread * n) for n in (-2, -1, 0, 1, 2, -1, 1, 0, 0))


def measured(created: str, **p50: float) -> BenchReport:
    rows = [
        row(name.replace("_", "-"), ms, (1, 1, 1), round_medians_ms=rounds(ms, 0.002), processes=3, rounds=9)
        for name, ms in p50.items()
    ]
    return bench(*rows, created=created)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Before and now: one of the variants became much slower, one much faster, one stayed, and one is new."""
    old = measured("2026-11-20T08:00:00Z", onnx_fp32=0.5, onnx_fp16=0.6, torchscript_fp32=1.0)
    new = measured("2026-11-24T08:00:00Z", onnx_fp32=1.0, onnx_fp16=0.2, torchscript_fp32=1.0, onnx_int8=0.1)
    return write(tmp_path, old, new)


def test_the_page_says_what_became_slower_and_what_faster(files: list[Path], tmp_path: Path) -> None:
    old, new = files
    target = tmp_path / "report.md"
    assert run(["report", str(new), "--baseline", str(old), "-o", str(target)]) == 0
    text = target.read_text()
    section = text[text.index("## Against the baseline") : text.index("## Every variant")]
    assert "(2026-11-20) to " in section.replace("\\", "") and "faster 1, slower 1, no difference shown 1" in section
    lines = {
        line.split("|")[1].strip().replace("\\", ""): line for line in section.splitlines() if line.startswith("| ")
    }
    assert "slower" in lines["onnx-fp32"] and "faster" in lines["onnx-fp16"]
    assert "no difference" in lines["torchscript-fp32"]
    assert "not judged" in lines["onnx-int8"] and "only the new bench has it" in section.replace("\\", "")


def test_exchanged_sides_exchange_the_words(files: list[Path], tmp_path: Path) -> None:
    old, new = files
    target = tmp_path / "report.md"
    assert run(["report", str(old), "--baseline", str(new), "-o", str(target)]) == 0
    section = target.read_text().split("## Against the baseline")[1].split("## ")[0]
    line = next(line for line in section.splitlines() if line.startswith("| onnx-fp32") or "onnx\\-fp32" in line)
    assert "faster" in line


def test_what_compare_printed_is_a_result_like_others(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", str(files[0]), str(files[1]), "--json"]) == 0
    compared = tmp_path / "compared.json"
    compared.write_text(capsys.readouterr().out)
    direct, read = tmp_path / "direct.md", tmp_path / "read.md"
    assert run(["report", str(files[1]), "--baseline", str(files[0]), "-o", str(direct)]) == 0
    assert run(["report", str(files[1]), str(compared), "-o", str(read)]) == 0
    tables = [
        file.read_text().split("## Against the baseline")[1].split("## Every variant")[0] for file in (direct, read)
    ]
    assert tables[0] == tables[1]
    alone = tmp_path / "alone.md"
    assert run(["report", str(compared), "-o", str(alone)]) == 0
    assert tables[0].splitlines()[2] in alone.read_text()


def test_every_number_is_in_the_csv(files: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "report.csv"
    assert run(["report", str(files[1]), "--baseline", str(files[0]), "-o", str(target)]) == 0
    with target.open() as file:
        lines = [line for line in csv.DictReader(file) if line["kind"] == "comparison"]
    found = {(line["variant"], line["metric"]): line["value"] for line in lines}
    assert float(found["onnx-fp32", "ratio"]) == pytest.approx(0.5, rel=0.02)
    assert float(found["onnx-fp32", "ratio_low"]) <= float(found["onnx-fp32", "ratio"])


def test_a_page_has_the_picture_and_its_words(files: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    assert run(["report", str(files[1]), "--baseline", str(files[0]), "-o", str(target)]) == 0
    page = target.read_text()
    assert 'id="baseline"' in page and "in multiples of before" in page


def test_a_baseline_for_nothing_is_refused(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify = write(tmp_path, *whole())[1]
    target = tmp_path / "report.md"
    assert run(["report", str(verify), "--baseline", str(files[0]), "-o", str(target)]) == 2
    assert "none of these results is of bench" in " ".join(capsys.readouterr().err.split())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(files[0].read_text())).replace("-fp", "-other"))
    (tmp_path / "new").mkdir()
    new = write(tmp_path / "new", measured("2026-11-24T08:00:00Z", onnx_fp32=1.0))[0]
    assert run(["report", str(new), "--baseline", str(other), "-o", str(target)]) == 2
    assert not target.exists()


def test_benches_of_two_bundles_are_not_runs_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def of(bundle: str, p50: float, created: str) -> BenchReport:
        return msgspec.structs.replace(measured(created, onnx_fp32=p50), bundle=bundle)

    old_a, old_b = of("a", 1.0, "2026-11-20T08:00:00Z"), of("b", 4.0, "2026-11-20T08:00:00Z")
    new_a, new_b = of("a", 2.0, "2026-11-24T08:00:00Z"), of("b", 2.0, "2026-11-24T08:00:00Z")
    names = list(map(str, write(tmp_path, old_a, old_b, new_a, new_b)))
    target = tmp_path / "report.md"
    assert run(["report", *names[2:], "--baseline", ",".join(names[:2]), "-o", str(target)]) == 0
    parts = target.read_text().split("## Against the baseline")[1:]
    assert ["slower 1" in part.splitlines()[2] for part in parts] == [True, False]
    assert "faster 1" in parts[1].splitlines()[2]
    assert run(["report", *names[2:], "--baseline", names[0], "-o", str(target)]) == 2
    assert "the baseline has no bench of b" in " ".join(capsys.readouterr().err.split())
