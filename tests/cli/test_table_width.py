"""Tables and sentences in the width of the terminal: every value is there, whole, and no line is longer."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggdeploy.cli import render, tables
from vggdeploy.report import tables as columns
from vggdeploy.report.documents import read_document
from vggdeploy.report.tables import Column, Facts, Grid, grid
from vggdeploy.types import Verdict

FOUND = Path(__file__).parents[2] / "benchmarks" / "results" / "find_qps.json"
DRAWN = re.compile("[┃│━╇─┼]")


def terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of that many columns in place of stdout."""
    stream = io.StringIO()
    console = render._Terminal(
        file=stream, width=width, force_terminal=True, no_color=True, soft_wrap=True, highlight=False, emoji=False
    )
    monkeypatch.setattr(render, "out", console)
    monkeypatch.setattr(tables, "out", console)
    return stream


def lines(stream: io.StringIO) -> list[str]:
    return re.sub("\x1b\\[[0-9;]*m", "", stream.getvalue()).splitlines()


def bench_like() -> Grid:
    """The rows of a bench of four variants at two batch sizes, with names and numbers of usual length."""
    rows = [
        (
            Facts(
                variant=variant, batch=batch, p50_ms=12.34, p90_ms=13.4, p99_ms=15.6, images_per_second=2345.6,
                ratio=8.76, ratio_low=8.57, ratio_high=8.96, verdict=Verdict.PASS, valid=False,
                comparison="no difference shown",
            ),
        )
        for batch in (1, 8)
        for variant in ("torch-fp32", "torchscript-fp32", "tensorrt-rtx-fp16", "openvino-int8")
    ]  # fmt: skip
    return grid(columns.BENCH, rows)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_bench_is_readable_in_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(width, monkeypatch)
    render.table(bench_like())
    shown = lines(stream)
    assert max(map(len, shown)) <= width
    assert "…" not in stream.getvalue()
    text = stream.getvalue()
    for value in ("tensorrt-rtx-fp16", "12.3", "13.4", "15.6", "2,350", "8.76 (8.57–8.96)", "✔ pass", "invalid"):
        assert text.count(value) >= 4, value
    # Each part says which row it is of: the name and the batch size.
    named = [line for line in shown if re.match(r"tensorrt-rtx-fp16 +│ +[18] ", line)]
    assert len(named) >= 2 * (2 if width < 100 else 1)


@pytest.mark.parametrize("width", [60, 80])
def test_both_verdicts_of_every_variant_are_readable_in_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `export`, `demo`, `inspect` and `verify` show them."""
    names = ("onnx-fp16", "torchscript-fp32", "tensorrt-rtx-fp16-sm89-sm120")
    proof = Facts(layers={"fp16": 16})
    about = Facts(
        verdict=Verdict.INCONCLUSIVE, numerical=Verdict.PASS, bounds=Verdict.INCONCLUSIVE, proof=proof, size=138_357_544,
        batch="1:8:256", relative_l2=1.2e-3, p50_ms=12.345, p50_batch=8, data="folder:/home/me/pictures test (40 images)",
        max_abs=1e-3, cosine_min=0.999991, flips=Facts(flips=0, samples=40, upper=0.0722), output="logits",
    )  # fmt: skip
    for kind in (columns.VARIANTS, columns.PARITY):
        stream = terminal(width, monkeypatch)
        render.table(grid(kind, [(Facts(name=name, variant=name), about) for name in names]))
        shown = lines(stream)
        assert max(map(len, shown)) <= width
        text = stream.getvalue()
        assert "…" not in text
        for word in (*names, "numerical", "bounds"):
            assert word in text, word
        assert text.count("✔ pass") >= 3 and text.count("? inconclusive") >= 3
    assert text.count("0/40 (≤ 7.22%)") == 3


def test_a_wide_terminal_has_one_table_with_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(160, monkeypatch)
    render.table(bench_like())
    heads = [line for line in lines(stream) if line.startswith("variant")]
    assert len(heads) == 1
    assert "shown" in heads[0]


def test_a_log_has_one_line_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(render, "out", render._Terminal(file=stream, width=40, soft_wrap=True))
    render.table(bench_like())
    assert len(stream.getvalue().splitlines()) == 2 + 8


@settings(deadline=None)
@given(
    st.integers(40, 140),
    st.lists(st.lists(st.text("ab c", max_size=30), min_size=5, max_size=5), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_no_letter_is_lost_whatever_the_cells(width: int, cells: list[list[str]], left: list[bool]) -> None:
    made = tuple(Column(f"k{i}", f"title {i}", left=left[i]) for i in range(5))
    rows = [(Facts(**{f"k{i}": text for i, text in enumerate(row)}),) for row in cells]
    with pytest.MonkeyPatch.context() as patch:
        stream = terminal(width, patch)
        found = grid(made, rows)
        render.table(found)
    shown = lines(stream)
    assert max(map(len, shown)) <= width
    letters = DRAWN.sub("", "".join(shown))
    for row in found.rows:
        for index, cell in enumerate(row):
            assert letters.count("a") >= cell.text.count("a"), (index, cell)
    assert letters.count("a") >= sum(cell.text.count("a") for row in found.rows for cell in row)


def test_a_sentence_breaks_between_words_under_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(40, monkeypatch)
    render.sentence("one two three four five six seven eight nine ten", "[red]✘ [/]")
    shown = [line.rstrip() for line in lines(stream)]
    assert shown == ["✘ one two three four five six seven", "  eight nine ten"]


def test_reasons_of_a_verdict_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(80, monkeypatch)
    tables.print_reason("tensorrt-rtx-fp16", "there is no NVIDIA driver here " * 5)
    tables.print_wrong("onnx-fp16", "it was asked to compute in FP16, and computes in FP32 " * 3)
    assert max(map(len, lines(stream))) <= 80


def test_every_line_of_a_real_load_test_fits_but_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(80, monkeypatch)
    tables.scenario_table(read_document(FOUND))
    assert [line for line in lines(stream) if len(line) > 80] == []
    assert "64,997" in stream.getvalue()
