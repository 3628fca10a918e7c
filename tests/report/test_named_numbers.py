"""Every time says of how many images it is, and nothing is called the fastest where nothing was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from report_samples import bench, row

import vggdeploy
from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.bundle.variant import Measurement
from vggdeploy.cli.app import run
from vggdeploy.engine.selection import choices
from vggdeploy.report import fits, gpu_day_sections, load_section, tables
from vggdeploy.report.answers import answers
from vggdeploy.report.documents import Document, Results
from vggdeploy.report.subjects import gather
from vggdeploy.report.tables import Column
from vggdeploy.system.machine import fingerprint

DOCS = Path(__file__).parents[2]
LATENCY = re.compile(r"^(old |new )?p\d\d ms")
NAMED = re.compile(r"of one image|a request|here$")  # "here": the cell itself names the batch, see below


def column_sets() -> Iterator[tuple[str, tuple[Column, ...]]]:
    for module in (tables, fits, gpu_day_sections, load_section):
        for name, value in vars(module).items():
            if isinstance(value, tuple) and value and all(isinstance(part, Column) for part in value):
                yield f"{module.__name__.rpartition('.')[2]}.{name}", value


@dataclass
class Nameless:
    """Columns in which a time stands without its number of images."""

    columns: tuple[Column, ...]

    def found(self) -> list[str]:
        has_batch = any("batch" in c.title for c in self.columns if not c.wide)
        return [
            c.title for c in self.columns if LATENCY.match(c.title) and not (has_batch or NAMED.search(c.title))
        ]  # fmt: skip


def test_there_are_tables_with_times() -> None:
    """Else the next test would hold of nothing."""
    timed = [name for name, columns in column_sets() if any(LATENCY.match(c.title) for c in columns)]
    assert {"tables.BENCH", "tables.CANDIDATES", "tables.VARIANTS", "fits.FILES"} <= set(timed)


@pytest.mark.parametrize(("name", "columns"), list(column_sets()), ids=lambda v: v if isinstance(v, str) else "")
def test_a_column_of_times_names_its_batch(name: str, columns: tuple[Column, ...]) -> None:
    assert Nameless(columns).found() == [], name


def test_a_nameless_time_would_be_found() -> None:
    assert Nameless((tables.VARIANT, tables.P50)).found() == ["p50 ms"]


def measured(root: Path, machine: str, *batches: int) -> None:
    bundle = Bundle.open(root)
    times = tuple(
        Measurement(machine=machine, backend="onnxruntime", batch=b, threads=1, p50_ms=1.5 * b) for b in batches
    )
    with update_bundle(bundle) as draft:
        changed = msgspec.structs.replace(bundle.manifest.variant("onnx-fp32"), measured=times)
        draft.manifest = bundle.manifest.with_variants(changed)


def inspected(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(["inspect", str(root)]) == 0
    return capsys.readouterr().out


def test_the_time_here_says_its_batch(own_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(own_bundle, fingerprint(), 8)
    shown = inspected(own_bundle, capsys)
    assert re.search(r"│ +12\.0 at batch 8$", shown, re.MULTILINE)
    assert "proven, 12.00 ms at batch 8 here" in re.sub(r"\s+", " ", shown)


def test_the_smallest_batch_that_was_measured_is_the_one_that_is_told(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(own_bundle, fingerprint(), 8, 1, 4)
    shown = inspected(own_bundle, capsys)
    assert "1.50 at batch 1" in shown and "at batch 8" not in shown


def test_a_time_of_another_machine_is_no_time_here(own_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(own_bundle, "another machine", 1)
    shown = inspected(own_bundle, capsys)
    assert "1.50" not in shown
    assert all(
        choice.reason.endswith("not measured here") for choice in choices(Bundle.open(own_bundle)) if choice.usable
    )


def test_nothing_is_the_fastest_where_nothing_was_measured(
    bundle_dir: Path, digit_png: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not any(v.measured for v in Bundle.open(bundle_dir).manifest.variants)
    for line in (["inspect", bundle_dir], ["explain", bundle_dir], ["predict", bundle_dir, digit_png]):
        assert run(list(map(str, line))) == 0
        shown = capsys.readouterr()
        said = f"{shown.out}\n{shown.err}".lower()
        assert said.strip()
        assert not re.search(r"fastest|faster than", said), line
        if line[0] != "predict":
            assert "not measured here" in re.sub(r"\s+", " ", said)


def sentences() -> Iterator[tuple[str, str]]:
    """Of the pages, and of what `load` says of itself."""
    for page in [DOCS / "README.md", *sorted((DOCS / "docs").rglob("*.md"))]:
        for part in re.split(r"\n(?:\s*\n|- |\|)", page.read_text(encoding="utf-8")):  # paragraphs, items, rows
            yield from ((page.name, sentence) for sentence in re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", part)))
    yield from (("load", sentence) for sentence in re.split(r"(?<=\.)\s", vggdeploy.load.__doc__ or ""))


def test_no_page_says_that_loading_takes_the_fastest_without_measuring() -> None:
    loads = [(where, s) for where, s in sentences() if re.search(r"\b(takes?|opens?)\b.*\bthe fastest", s, re.I)]
    assert {"README.md", "load"} <= {where for where, _ in loads}  # they do speak of it
    assert [(where, s) for where, s in loads if "measured" not in s] == []


def test_the_answer_of_a_bench_says_the_batch_of_each_time() -> None:
    rows = (row("torch-fp32", 2.0, (1, 1, 1), batch=8), row("onnx-fp32", 0.5, (4, 3.9, 4.1), batch=8))
    results = Results((Document(Path("x"), bench(*rows)),))
    (found,) = answers(results, gather(results))
    assert {f.note for f in found.facts if f.name == "p50"} == {"batch 8"}
    assert "2.00 ms at batch 8: " in found.runner_up
