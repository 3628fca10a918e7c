"""A package that is missing, and one that is broken, are told apart in words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vggdeploy.errors import IncompatibleError, MissingDependencyError, first_line
from vggdeploy.system.optional import installed, require, version


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the path, to put packages in."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_what_is_installed_is_found_without_importing_it(package: Path) -> None:
    (package / "vggdeploy_dummy_a.py").write_text("raise SystemError")
    assert installed("vggdeploy_dummy_a")
    assert "vggdeploy_dummy_a" not in sys.modules


@pytest.mark.parametrize("name", ["vggdeploy_none", "vggdeploy_none.sub", "json.none", "sys.none"])
def test_what_is_not_there_is_not_installed(name: str) -> None:
    assert not installed(name)


def test_a_child_of_a_package_that_does_not_import_is_not_installed(package: Path) -> None:
    (package / "vggdeploy_dummy_b").mkdir()
    (package / "vggdeploy_dummy_b" / "__init__.py").write_text("raise ImportError('libcuda.so.1')")
    assert not installed("vggdeploy_dummy_b.sub")


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        require("vggdeploy_none", to="build engines", extra="gpu")
    assert (
        caught.value.cause == "the Python package 'vggdeploy_none' is needed to build engines, and it is not installed"
    )
    assert caught.value.hint == "pip install 'vggdeploy[gpu]'"
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    "error",
    ["ImportError('libnvinfer.so.11: cannot open\\nmore')", "OSError('libcudart')", "RuntimeError('no nms')",
     "AttributeError('_ARRAY_API')", "SystemError('ABI')"],
)  # fmt: skip
def test_a_package_that_does_not_import_says_why_in_one_line(package: Path, error: str) -> None:
    name = f"vggdeploy_dummy_{error[:3].lower()}{len(error)}"
    (package / f"{name}.py").write_text(f"raise {error}")
    with pytest.raises(IncompatibleError, match="is installed but does not import: ") as caught:
        require(name, to="build engines", extra="gpu")
    assert type(caught.value) is IncompatibleError
    assert "\n" not in str(caught.value)


def test_a_good_package_is_handed_out() -> None:
    assert require("json", to="test", extra="test").loads("1") == 1


def test_versions() -> None:
    assert version("numpy")
    assert version("vggdeploy-none") is None


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("a\nb"), "a"), (ValueError("\n\n a \nb"), "a"), (ValueError(), "ValueError"), (ValueError(" "), "ValueError")],
)  # fmt: skip
def test_the_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line
