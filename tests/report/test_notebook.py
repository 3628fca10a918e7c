"""What a Jupyter notebook shows of engines, bundles, answers and results: tables of text, whatever the names in them are."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from report_samples import bench, parity, proof, row, whole

import vggdeploy
from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.engine.predictions import Prediction, PredictionLists, Predictions
from vggdeploy.report.notebook import html_of
from vggdeploy.types import Verdict

HOSTILE = "<script>alert(1)</script>"
NAMES = [HOSTILE, '"><img src=x onerror=alert(1)>', "</td></table><h1>safe", "'&lt;b&gt;", "a\u202eb\x1b[2Jc\n\nd"]
TAGS = {"p", "strong", "table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary"}


class Shown(HTMLParser):
    """The elements, and the text that a reader sees, of HTML whose tags have to be balanced."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        self.tags.add(tag)
        self.attributes |= set(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def harmless(html: str | None) -> Shown:
    assert html is not None
    shown = Shown(html)
    assert shown.tags <= TAGS
    assert shown.attributes <= {("scope", "col"), ("scope", "row"), ("style", "text-align: left")}
    assert shown.text.replace("\n", "").isprintable()
    return shown


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_class_name_is_shown_as_text(name: str) -> None:
    answers = Predictions([Prediction(name, 3, 0.75), Prediction("cat", 1, 0.25)])
    shown = harmless(answers._repr_html_())
    assert vggdeploy.errors.one_line(name) in shown.text
    assert "75.00%" in shown.text
    assert "25.00%" in harmless(PredictionLists([answers, answers])._repr_html_()).text


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_in_a_bundle_are_shown_as_text(name: str, own_bundle: Path) -> None:
    with update_bundle(Bundle.open(own_bundle)) as draft:
        assert draft.manifest is not None
        labels = (name, *draft.manifest.labels[1:])
        draft.manifest = msgspec.structs.replace(draft.manifest, labels=labels, name=name, dataset=name)
    bundle = Bundle.open(own_bundle)
    assert harmless(bundle._repr_html_()).text.count(vggdeploy.errors.one_line(name)) >= 3
    with vggdeploy.load(own_bundle, variant="onnx-fp32") as engine:
        assert vggdeploy.errors.one_line(name) in harmless(engine._repr_html_()).text


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_in_results_are_shown_as_text(name: str) -> None:
    slow = row(name, 2.0, (1.0, 1.0, 1.0), valid=False, reasons=(name,))
    failed = proof(slow, Verdict.FAIL, reasons=(name,))
    for result in (bench(slow, bundle=name, data=name), parity(failed)):
        assert vggdeploy.errors.one_line(name) in harmless(result._repr_html_()).text


def test_a_bundle_shows_its_variants_with_their_verdicts(bundle: Bundle) -> None:
    shown = harmless(bundle._repr_html_()).text
    for variant in bundle.manifest.variants:
        assert variant.name in shown
    assert "✔ pass" in shown
    assert bundle.manifest.labels[0] in shown


def test_a_failed_variant_is_never_shown_as_a_pass(own_bundle: Path) -> None:
    with update_bundle(Bundle.open(own_bundle)) as draft:
        assert draft.manifest is not None
        variant = draft.manifest.variant("onnx-fp16")
        assert variant.parity is not None
        failed = msgspec.structs.replace(
            variant.parity, verdict=Verdict.FAIL, numerical=Verdict.FAIL, bounds=None, reasons=("planted",)
        )
        draft.manifest = draft.manifest.with_variants(msgspec.structs.replace(variant, parity=failed))
    html = Bundle.open(own_bundle)._repr_html_() or ""
    (line,) = [line for line in html.splitlines() if ">onnx-fp16<" in line]
    assert "✘ fail" in line
    assert "pass" not in line


def test_an_engine_says_what_runs_and_whether_it_still_does(bundle_dir: Path, digit_png: Path) -> None:
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as engine:
        shown = harmless(engine._repr_html_()).text
        assert "ONNX Runtime, cpu" in shown
        assert "open" in shown
        one, several = engine.classify(digit_png), engine.classify([digit_png] * 2)
    assert "closed" in harmless(engine._repr_html_()).text
    assert digit_png.stem in harmless(one._repr_html_()).text  # type: ignore[attr-defined]
    assert harmless(several._repr_html_()).text.count(digit_png.stem) >= 2  # type: ignore[attr-defined]


def test_answers_are_lists_to_everything_else(bundle_dir: Path, digit_png: Path) -> None:
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as engine:
        answers = engine.classify([digit_png, digit_png], top=2)
    plain = [[dict(p) for p in one] for one in answers]
    assert answers == plain
    assert json.loads(json.dumps(answers)) == plain
    assert msgspec.json.decode(msgspec.json.encode(answers)) == plain
    again: Any = pickle.loads(pickle.dumps(answers))  # noqa: S301  # our own bytes
    assert again == answers
    assert isinstance(again[0], Predictions)


def test_results_show_the_verdict_and_the_numbers_of_their_tables() -> None:
    measured, proven = whole()
    shown = harmless(measured._repr_html_()).text
    for timed in measured.rows:
        assert timed.variant in shown
    assert "p99 ms" in shown
    assert "comparisons pass" in harmless(proven._repr_html_()).text


def test_what_is_no_result_is_left_to_print(bundle: Bundle) -> None:
    assert html_of(object()) is None
    assert bundle.manifest._repr_html_() is None


def test_showing_a_bundle_imports_nothing_heavy(bundle_dir: Path) -> None:
    code = (
        "import sys; from vggdeploy import Bundle; "
        f"assert '<table>' in Bundle.open({str(bundle_dir)!r})._repr_html_(); "
        "print({'torch', 'altair', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
