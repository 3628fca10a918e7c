"""The published schemas are those of the records, and every result that is written fits its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from report_samples import bench, layers, parity, proof, row, whole, write

from vggdeploy.cli.app import run
from vggdeploy.records.schema import RESULTS, result_schema, schema_text

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
V1 = Path(__file__).parents[1] / "fixtures" / "results-v1"
HOW = "run: python docs/reference/make_schemas.py"


def published(name: str) -> Any:
    return json.loads((REFERENCE / f"{name}.schema.json").read_bytes())


def fits(name: str, document: Any) -> None:
    jsonschema.validate(document, published(name))


@pytest.mark.parametrize("name", RESULTS)
def test_the_published_schema_has_every_type_and_field(name: str) -> None:
    def fields(schema: Any) -> dict[str, tuple[set[str], set[str]]]:
        return {k: (set(d.get("properties", ())), set(d.get("required", ()))) for k, d in schema["$defs"].items()}

    assert fields(published(name)) == fields(result_schema(name)), HOW
    jsonschema.Draft202012Validator.check_schema(published(name))


@pytest.mark.parametrize("name", RESULTS)
def test_the_documented_command_writes_the_published_schema(name: str) -> None:
    if published(name)["$comment"] != result_schema(name)["$comment"]:
        pytest.skip("another msgspec words the same schema otherwise")
    assert (REFERENCE / f"{name}.schema.json").read_bytes() == schema_text(result_schema(name)), HOW


@pytest.mark.parametrize("name", ["parity", "bench", "bench-scenarios", "evaluation"])
def test_documents_of_version_1_fit(name: str) -> None:
    fits(name.partition("-")[0], json.loads((V1 / f"{name}.json").read_bytes()))


def test_what_the_commands_print_fits(bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {}
    for name, line in {
        "parity": ["verify", str(bundle_dir), "--samples", "60"],
        "bench": ["bench", str(bundle_dir), "--variant", "onnx-fp32", "--seconds", "0.05", "--rounds", "3"],
        "evaluation": ["evaluate", str(bundle_dir), "--variant", "onnx-fp16", "--samples", "60"],
    }.items():
        assert run([*line, "--json"]) in (0, 4)
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(capsys.readouterr().out)
    later = {
        "comparison": ["compare", str(files["bench"]), str(files["bench"])],
        "report": ["report", *map(str, files.values()), "-o", str(tmp_path / "report.md")],
    }
    for name, line in later.items():
        assert run([*line, "--json"]) == 0
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(capsys.readouterr().out)
    for name, file in files.items():
        fits(name, json.loads(file.read_bytes()))


def test_records_with_every_field_fit(tmp_path: Path) -> None:
    measured, proven = whole()
    for name, file in zip(("bench", "parity"), write(tmp_path, measured, proven), strict=True):
        fits(name, json.loads(file.read_bytes()))


def test_an_unknown_field_does_not_fit(tmp_path: Path) -> None:
    one = row("a", 1, (1, 1, 1))
    for name, file in zip(
        ("bench", "parity"), write(tmp_path, bench(one), parity(proof(one), layers=(layers(),))), strict=True
    ):
        with pytest.raises(jsonschema.ValidationError):
            fits(name, json.loads(file.read_bytes()) | {"extra": 1})
