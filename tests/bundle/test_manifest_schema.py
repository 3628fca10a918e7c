"""The published JSON Schema is the manifest's, and real manifests fit it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from forgery import set_at

from vggdeploy.bundle import MANIFEST_NAME
from vggdeploy.bundle.manifest import manifest_schema

PUBLISHED = Path(__file__).parents[2] / "docs" / "reference" / "manifest.schema.json"


@pytest.fixture(scope="module")
def schema() -> Any:
    return json.loads(PUBLISHED.read_bytes())


HOW = "run: python docs/reference/make_schemas.py"


def test_the_published_schema_has_every_type_and_field(schema: Any) -> None:
    now = manifest_schema()

    def fields(of: Any) -> dict[str, tuple[set[str], set[str]]]:
        return {k: (set(d.get("properties", ())), set(d.get("required", ()))) for k, d in of["$defs"].items()}

    assert fields(schema) == fields(now), HOW


def test_the_documented_command_writes_the_published_schema(schema: Any, tmp_path: Path) -> None:
    if schema["$comment"] != manifest_schema()["$comment"]:
        pytest.skip("another msgspec words the same schema otherwise")
    command = [sys.executable, "-W", "error", PUBLISHED.with_name("make_schemas.py"), tmp_path]
    subprocess.run(command, check=True)
    assert (tmp_path / PUBLISHED.name).read_bytes() == PUBLISHED.read_bytes(), HOW


def test_the_schema_is_a_valid_schema(schema: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)


def test_a_real_manifest_fits(schema: Any, original: Path) -> None:
    jsonschema.validate(json.loads((original / MANIFEST_NAME).read_bytes()), schema)


@pytest.mark.parametrize(
    "edit",
    [
        set_at("extra", 1),
        set_at("variants", 0, "extra", 1),
        set_at("files", 0, "size", -1),
        set_at("files", 0, "sha256", "x"),
        set_at("labels", 3),
        lambda d: d.pop("variants"),
    ],
    ids=["extra", "extra below", "size", "hash", "type", "missing"],
)
def test_what_we_refuse_the_schema_refuses_too(schema: Any, original: Path, edit: Any) -> None:
    document = json.loads((original / MANIFEST_NAME).read_bytes())
    edit(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)
