"""What the README and docs/ say is run, in order, as pasted: Python blocks, commands, those of the README too, links."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout, suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vggdeploy.cli.app import run

pytestmark = pytest.mark.late

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"(?P<skip><!-- not run: [^\n]+-->\n)?```(?P<kind>python|console)\n(?P<text>.*?)```", re.DOTALL)
_ROW = re.compile(r"^\| (`vggdeploy [^|]*) \|", re.MULTILINE)  # of a table, what is to be typed
_SPAN = re.compile(r"`(vggdeploy [^`]+)`")
_STANDS_FOR = re.compile(r"[A-Z]{3,}")  # CKPT, BUNDLE, DIR: what the reader has
_INSTALLS = re.compile(r"(?:pip|uv|pipx|uvx)(?: pip| tool)? (?:install|run|--from)[^`\n&]*")
_LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


@pytest.fixture(scope="module")
def demo_home(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A directory in which the README's first command has just been run."""

    def demo(home: Path) -> None:
        home.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "vggdeploy", "demo", "--seconds", "0.1"],
            cwd=home, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (home / "demo.txt").write_text(done.stdout)

    return once("demo/home", demo)


def test_the_demo_ends_with_the_table_the_bundle_and_the_next_commands(demo_home: Path) -> None:
    shown = (demo_home / "demo.txt").read_text()
    accuracy = re.search(r"test ([\d.]+)%", shown)
    assert accuracy is not None
    assert float(accuracy[1]) >= 97
    ending = shown[shown.index("bundle: artifacts/demo/bundle") :]
    for variant in ("torch-fp32", "onnx-fp32", "onnx-fp16", "torchscript-fp32", "tensorrt-rtx-fp16"):
        assert variant in ending
    assert re.search(r"tensorrt-rtx-fp16 .*unproven", ending)  # no GPU here: an engine that did not run is never a pass
    assert (demo_home / "artifacts/demo/bundle/manifest.json").is_file()


def test_the_demo_can_be_run_again(demo_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "again"
    shutil.copytree(demo_home, home)
    monkeypatch.chdir(home)
    assert run(["demo", "--seconds", "0.02", "--epochs", "1"]) in (0, 4)  # one epoch may learn too little


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_shows_works(page: Path, demo_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [m for m in _BLOCK.finditer(page.read_text()) if not m["skip"]]
    home = tmp_path / "home"
    if blocks:
        shutil.copytree(demo_home, home)
        monkeypatch.chdir(home)
    names: dict[str, object] = {}
    for block in blocks:
        if block["kind"] == "python":
            exec(compile(block["text"], str(page), "exec"), names)  # noqa: S102  # our own documentation
            continue
        for line in block["text"].replace("\\\n", " ").splitlines():
            typed(line)


def typed(line: str) -> None:
    """Run a line as it stands. What installs has been installed: only the extras and names in it are looked at, elsewhere."""
    words = shlex.split(line, comments=True)
    if not words or words[0] in ("pip", "$"):  # "$" stands before a usage line of the reference
        return
    target = Path(words.pop()) if words[-2:-1] == [">"] and words.pop(-2) else None
    if "--ray" in words:  # a cluster ends with its process
        subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)
    elif words[0] == "vggdeploy":
        with target.open("w") if target else nullcontext() as out, redirect_stdout(out or sys.stdout):
            assert run(words[1:]) == 0, line
    else:
        subprocess.run(["bash", "-c", line], check=True)


def table_lines(page: Path) -> list[str]:
    """The commands in the first column of a page's tables."""
    return [line for row in _ROW.findall(page.read_text()) for line in _SPAN.findall(row)]


def test_the_lines_of_the_readmes_table_work_in_their_order(
    demo_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = table_lines(ROOT / "README.md")
    pasted = [line for line in lines if not _STANDS_FOR.search(line)]
    verbs = {line.split()[1] for line in pasted}
    assert verbs >= {
        "train",
        "evaluate",
        "export",
        "optimize",
        "build",
        "verify",
        "bench",
        "report",
        "predict",
        "embed",
    }
    assert verbs >= {"package", "sign", "verify-signature", "inspect", "summary", "curves", "doctor"}
    shutil.copytree(demo_home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    for line in pasted:
        typed(line)


NOTEBOOK = ROOT / "docs/tutorial/in-a-notebook.ipynb"
_MACHINE = re.compile(r"(?<![\w.<])/(?:home|root|tmp|work|usr|opt|var|Users)\b")


def shown(notebook: Path) -> list[list[set[str]]]:
    """For each cell of code, the kinds of what it shows: MIME types, or the name of a stream."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    return [[set(output.get("data", {output.get("name"): ""})) for output in cell["outputs"]] for cell in cells]


def test_the_notebook_runs_and_shows_what_it_was_saved_with(demo_home: Path, tmp_path: Path) -> None:
    """In a kernel of its own, as Jupyter runs it; a cell that fails ends the script."""
    home, again = tmp_path / "home", tmp_path / "again.ipynb"
    shutil.copytree(demo_home, home)
    script = ROOT / "docs/tutorial/make_notebook.py"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script, "-o", again], cwd=home, env=env, check=True)
    assert shown(again) == shown(NOTEBOOK)
    assert sum("text/html" in kinds for cell in shown(again) for kinds in cell) >= 5  # bundle, engine, answers, proof
    assert ["'pass'" in text for text in texts(again) if "torch-fp32" in text and text.startswith("(")] == [True]


def texts(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return ["".join(output.get("text") or output.get("data", {}).get("text/plain", "")) for output in outputs]


def test_the_saved_notebook_ran_in_order_without_an_error_and_names_no_machine() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert not [o for cell in code for o in cell["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert not _MACHINE.findall(NOTEBOOK.read_text())
    assert NOTEBOOK.stat().st_size < 100_000


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_installs_are_told_from_here(page: Path) -> None:
    """The name is on no index: a fresh environment gets the package from the repository or from a wheel."""
    for line in _INSTALLS.findall(page.read_text()):
        for extras in re.findall(r"\[([\w,]+)\]", line):
            unknown = set(extras.split(",")) - EXTRAS.keys()
            assert not unknown or "tritonclient" in line, line
        assert not re.search(r"install\b[^/]* '?vggdeploy\b(?!-)", line) or page.name == "install.md", line


@functools.cache
def brought_by_all() -> set[str]:
    """The distributions that the extra `all` brings, and those that they bring."""
    [everything] = EXTRAS["all"]
    extras = [EXTRAS[name] for name in sorted(Requirement(everything).extras)]
    waiting = [*PROJECT["dependencies"], *(requirement for extra in extras for requirement in extra)]
    found = {"vggdeploy"}
    while waiting:
        wanted = Requirement(waiting.pop())
        if wanted.name.lower() in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        found.add(wanted.name.lower())
        with suppress(PackageNotFoundError):
            waiting += requires(wanted.name) or ()
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_names_what_it_imports_beyond_the_extra_all(page: Path) -> None:
    """`docs/README.md` says that pages need `.[all]`; a page that needs more says so itself."""
    text = page.read_text()
    installs = " ".join(_INSTALLS.findall(text)).lower()
    ours = brought_by_all()
    homes = packages_distributions()
    modules = {
        (node.module or "").partition(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.partition(".")[0]
        for block in _BLOCK.finditer(text)
        if block["kind"] == "python"
        for node in ast.walk(ast.parse(block["text"]))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    wanted = {name: {home.lower() for home in homes.get(name, [name])} for name in modules - sys.stdlib_module_names}
    missing = [name for name, dists in wanted.items() if not dists & ours and not any(d in installs for d in dists)]
    assert not missing
    if "fastapi.testclient" in text:  # which asks for it when it is imported
        assert "httpx2" in installs


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not broken


def test_the_reference_has_every_command_and_every_option() -> None:
    import typer

    from vggdeploy.cli.app import app

    text = (ROOT / "docs/reference/cli.md").read_text()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        section = text.partition(f"## `vggdeploy {name}`")[2].partition("\n## ")[0]
        options = {option for p in command.params for option in p.opts if option.startswith("--")}
        assert options, name
        missing = {option for option in options if f"{option}" not in section}
        assert not missing, (name, missing)
