"""Variants of several bundles beside each other in one run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from vggdeploy.bench.candidates import bundle_names, check_same_input
from vggdeploy.bench.run import BenchPlan, Rounds, bench_bundle
from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import UsageError
from vggdeploy.types import TensorSpec


@pytest.fixture
def pair(bundle_dir: Path, tmp_path: Path) -> list[Path]:
    """The same bundle twice, under two names."""
    return [Path(shutil.copytree(bundle_dir, tmp_path / name)) for name in ("old", "new")]


def changed(path: Path, **fields) -> Bundle:
    """The bundle, with other fields in its manifest."""
    opened = Bundle.open(path)
    with update_bundle(opened) as draft:
        draft.manifest = msgspec.structs.replace(opened.manifest, **fields)
    return Bundle.open(path)


def test_rows_are_named_by_bundle_and_the_first_is_the_baseline(pair: list[Path], capsys) -> None:
    assert run(["bench", *map(str, pair), "--variant", "onnx-fp32", "--batch", "1", "--seconds", "0.05", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in report["rows"]] == ["old:onnx-fp32", "new:onnx-fp32"]
    assert report["baseline"] == "old:onnx-fp32"
    assert report["rows"][0]["ratio"] == 1
    assert report["bundles"] == [str(path) for path in pair]


def test_a_variant_can_be_named_of_one_bundle(pair: list[Path]) -> None:
    old, new = map(Bundle.open, pair)
    report = bench_bundle(
        old,
        new,
        plan=BenchPlan(variants=["old:onnx-fp32", "new:torchscript-fp32"], batches=[1], seconds=0.03),
        method=Rounds(3),
    )
    assert [row.variant for row in report.rows] == ["old:onnx-fp32", "new:torchscript-fp32"]


def test_a_new_bundle_is_held_against_the_old_one_in_one_run(pair: list[Path], capsys) -> None:
    """On whatever machine this runs: the exit code is the gate's, and the gate's rows are the run's own."""
    line = ["bench", *map(str, pair), "--variant", "onnx-fp32", "--batch", "1", "--seconds", "0.05"]
    code = run([*line, "--fail-if-slower", "5%", "--json"])
    report = json.loads(capsys.readouterr().out)
    gate, (old, new) = report["gate"], report["rows"]
    assert code == (0 if gate["passed"] else 4)
    assert (gate["old"], gate["new"], gate["limit"]) == (*map(str, pair), 0.05)
    [only] = gate["rows"]
    assert (only["variant"], only["same_bytes"]) == ("onnx-fp32", True)
    assert (only["ratio"], only["ratio_low"]) == (new["ratio"], new["ratio_low"])
    assert (old["rounds"], old["processes"], len(old["round_medians_ms"])) == (12, 4, 12)


def test_the_gate_wants_two_bundles_and_a_percentage(pair: list[Path], capsys) -> None:
    assert run(["bench", str(pair[0]), "--fail-if-slower", "5%"]) == 2
    assert "bench OLD NEW" in capsys.readouterr().err
    assert run(["bench", *map(str, pair), "--fail-if-slower", "much"]) == 2
    assert run(["bench", *map(str, pair), "--processes", "13"]) == 2
    assert "12 rounds cannot be measured in 13 processes" in capsys.readouterr().err


def test_each_bundle_keeps_its_own_medians(pair: list[Path]) -> None:
    old, new = map(Bundle.open, pair)
    rows = bench_bundle(
        old, new, plan=BenchPlan(variants=["onnx-fp32"], batches=[1], seconds=0.03), method=Rounds(3), record=True
    ).rows
    for row, path in zip(rows, pair, strict=True):
        kept = Bundle.open(path).manifest.variant("onnx-fp32").measured
        assert [m.p50_ms for m in kept] == ([row.p50_ms] if row.valid else [])


def test_a_variant_that_no_bundle_has_is_refused(pair: list[Path]) -> None:
    with pytest.raises(UsageError, match="onnx-fp31"):
        bench_bundle(*map(Bundle.open, pair), plan=BenchPlan(variants=["onnx-fp31"], batches=[1]))


def test_bundles_of_other_inputs_do_not_fit_together(pair: list[Path], capsys) -> None:
    preprocess = msgspec.structs.replace(Bundle.open(pair[1]).manifest.preprocess, resize=64, crop=64)
    opened = changed(pair[1], input=TensorSpec("image", "uint8", ("N", 64, 64, 1)), preprocess=preprocess)
    with pytest.raises(UsageError, match=r"64, 64, 1"):
        check_same_input([Bundle.open(pair[0]), opened])
    assert run(["bench", *map(str, pair), "--batch", "1"]) == 2
    assert "64, 64, 1" in capsys.readouterr().err


def test_another_crop_does_not_fit_either_but_another_mean_does(pair: list[Path]) -> None:
    first = Bundle.open(pair[0])
    preprocess = first.manifest.preprocess
    check_same_input([first, changed(pair[1], preprocess=msgspec.structs.replace(preprocess, mean=(0.3,)))])
    wider = msgspec.structs.replace(preprocess, resize=preprocess.resize + 8)
    with pytest.raises(UsageError, match="differently"):
        check_same_input([first, changed(pair[1], preprocess=wider)])


def test_names_are_as_short_as_they_can_be(bundle_dir: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "bundle", tmp_path / "b" / "bundle"]
    opened = [Bundle.open(Path(shutil.copytree(bundle_dir, path))) for path in paths]
    assert bundle_names(opened) == ["a/bundle", "b/bundle"]
    with pytest.raises(UsageError, match="twice"):
        bundle_names([opened[0], opened[0]])
