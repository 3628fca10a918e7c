"""The bill of materials of an installation, by the command that docs/how-to/check-what-is-installed.md and CI run."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement

pytestmark = pytest.mark.late

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("sbom") / "sbom.cdx.json"
    options = ["--pyproject", ROOT / "pyproject.toml", "--spec-version", "1.6", "--output-reproducible", "-o", output]
    program = Path(sysconfig.get_path("scripts")) / "cyclonedx-py"
    subprocess.run([program, "environment", *options, sys.prefix], check=True, capture_output=True)
    return output.read_text()


@pytest.fixture(scope="module")
def components(text: str) -> dict[str, dict[str, Any]]:
    return {c["name"].lower(): c for c in json.loads(text)["components"]}


def test_it_fits_the_official_schema_and_is_about_vggdeploy(text: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    root = json.loads(text)["metadata"]["component"]
    assert root["name"] == "vggdeploy"
    assert [entry["license"]["id"] for entry in root["licenses"]] == ["Apache-2.0"]


def test_the_runtime_s_packages_have_their_versions_purls_and_licences(components: dict[str, dict[str, Any]]) -> None:
    for text in PROJECT["dependencies"]:
        name = Requirement(text).name
        found = components[name]
        assert found["version"] == version(name)
        assert found["purl"] == f"pkg:pypi/{name}@{version(name)}"
        assert found["licenses"]
