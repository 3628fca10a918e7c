"""What is handed out: a wheel and a source archive, containers, workflows."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTAINERS = sorted((ROOT / "containers").glob("*.Dockerfile"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`python -m build`, with the build's own packages from here instead of an index."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "-o", out, ROOT], check=True, capture_output=True, text=True
    )
    return out


@pytest.mark.late
def test_the_metadata_is_what_an_index_takes(built: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *built.iterdir()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert sorted(path.suffix for path in built.iterdir()) == [".gz", ".whl"]


@pytest.mark.late
def test_the_wheel_has_every_file_of_the_package_and_no_other(built: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "vggdeploy"], cwd=ROOT, capture_output=True, text=True, check=True)
    [wheel] = built.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("vggdeploy-")}
    assert inside == set(tracked.stdout.splitlines())


@pytest.mark.late
def test_the_source_archive_can_build_and_test_itself(built: Path) -> None:
    [archive] = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert names >= {"pyproject.toml", "README.md", "LICENSE", "NOTICE", "tests/conftest.py", "docs/README.md"}
    assert names >= {"locks/cpu.txt", "containers/cpu.Dockerfile", ".ci/run"}


@pytest.mark.late
def test_where_the_wheel_is_installed_an_extra_is_added_without_an_index_knowing_the_name(
    built: Path, tmp_path: Path
) -> None:
    """It is what every message about a missing package says to type. The index is left out: it has no such name."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    [site] = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    [wheel] = built.glob("*.whl")
    alone = [python, "-m", "pip", "install", "--no-index", "--quiet"]
    subprocess.run([*alone, "--no-deps", wheel], check=True)
    (site / "packages_from_here.pth").write_text(sysconfig.get_path("purelib"))
    done = subprocess.run([*alone, "vggdeploy[cpu,serve]"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    away = subprocess.run(
        [python, "-m", "vggdeploy", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert away.stdout.startswith("vggdeploy ")
    place = subprocess.run(
        [python, "-c", "import vggdeploy; print(vggdeploy.__file__)"],
        cwd=tmp_path, env={}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(tmp_path) in place.stdout


@pytest.mark.parametrize("file", CONTAINERS, ids=lambda p: p.name)
def test_hadolint_has_no_complaint_of_the_containers(file: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", CONTAINERS, ids=lambda p: p.name)
def test_a_container_copies_what_is_there_and_is_let_in(file: Path) -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in file.read_text().splitlines():
        words = line.split()
        if words[:1] == ["COPY"] and not words[1].startswith("--from"):
            for source in words[1:-1]:
                assert (ROOT / source).exists(), line
                assert source.partition("/")[0] in let_in, line
    assert len(CONTAINERS) == 2


@pytest.mark.late
def test_the_workflows_fit_githubs_schema() -> None:
    files = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert [file.name for file in files] == ["checks.yml", "release.yml"]
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *files],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_workflow_tests_every_version_that_the_package_says_it_is_for() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = [line.rpartition(" ")[2] for line in said if line.startswith("Programming Language :: Python :: 3.")]
    text = (ROOT / ".github/workflows/checks.yml").read_text()
    assert versions
    assert all(f'"{version}"' in text for version in versions)
