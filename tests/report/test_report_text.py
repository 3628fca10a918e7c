"""Markdown and CSV: every number is there, and no name becomes markup or a formula."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from report_samples import bench, parity, proof, row, whole, write

from vggdeploy.report.write import write_report


def text_of(tmp_path: Path, suffix: str, *results: object) -> str:
    write_report(write(tmp_path, *results), tmp_path / f"report{suffix}")
    return (tmp_path / f"report{suffix}").read_text()


def test_markdown_has_the_findings_and_every_table(tmp_path: Path) -> None:
    text = text_of(tmp_path, ".md", *whole())
    assert text.startswith("# Report: demo/bundle\n\n**Take: onnx-fp32.** 4.00 × as fast as torch-fp32")
    assert "| tensorrt-rtx-fp16 | – unproven | numerical unproven | a reason to unproven |" in text
    for title in ("Every variant", "Latency", "Latency under load", "Parity per output", "Machine and versions"):
        assert f"\n## {title}\n" in text
    assert "| onnx-fp32 | onnxruntime | 3.70 | 100 | 400 | 90.0 | 3.00 |" in text
    assert "| onnx-fp32 | 1 | 0.118 | 0.510 | 0.0200 | 1.23 | 0.0456 | rapl |" in text
    assert "| onnx-fp32 | 1,600 | 9.00 | 31.2 | 10 | ? invalid | search | 8 | 900 |" in text
    assert "| 3 | conv2\\_1 | 3.0e-01 |" in text
    assert "vggdeploy verify artifacts/demo/bundle --json\n" in text


def test_tables_have_as_many_cells_in_every_row(tmp_path: Path) -> None:
    lines = text_of(tmp_path, ".md", *whole()).splitlines()
    tables: list[set[int]] = []
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            if not before.startswith("|"):
                tables.append(set())
            tables[-1].add(line.replace("\\|", "").count("|"))
    assert len(tables) >= 7
    assert all(len(counts) == 1 for counts in tables)


def test_a_name_stays_text_in_markdown(tmp_path: Path) -> None:
    name = "a|b <img src=x> [x](http://names.invalid) `c`\n# d"
    text = text_of(tmp_path, ".md", bench(row(name, 1, (1, 1, 1))))
    assert "<img" not in text
    assert "[x](http" not in text
    assert "\n# d" not in text
    assert "a\\|b &lt;img src=x&gt; \\[x\\](http://names.invalid) \\`c\\` \\# d" in text


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_csv_has_a_line_for_every_number(tmp_path: Path) -> None:
    measured, proven = whole()
    rows = table(text_of(tmp_path, ".csv", measured, proven))

    def value(**wanted: str) -> float:
        (found,) = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
        return float(found["value"])

    assert value(kind="bench", variant="onnx-fp32", batch="8", scenario="", metric="p50_ms") == 2.0
    assert (
        value(kind="bench", variant="onnx-fp32", batch="1", scenario="", metric="quantiles_ms.100")
        == (measured.rows[1].quantiles_ms[100])
    )
    assert value(kind="parity", variant="onnx-fp16", output="logits", metric="relative_l2") == 1e-6
    assert value(kind="parity", variant="onnx-fp16", output="", metric="flips.upper") == 0.0083
    assert value(kind="layer", output="conv2_1", metric="relative_l2") == 0.3
    assert len([r for r in rows if r["scenario"] == "server" and r["metric"] == "p99_ms"]) == 7


def test_a_name_is_no_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    evil = row("=HYPERLINK(1)", 1, (1, 1, 1), device="@x", backend="-2+3")
    rows = table(text_of(tmp_path, ".csv", bench(evil), parity(proof(evil, data="+1"))))
    cells = {cell for r in rows for key, cell in r.items() if key != "value"}
    assert "'=HYPERLINK(1)" in cells
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
