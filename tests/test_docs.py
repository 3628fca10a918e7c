"""What the README and docs/ say is run: every Python block, every vggdeploy command, every link."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import pytest

from vggdeploy.cli.app import run

pytestmark = pytest.mark.late

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"(?P<skip><!-- not run: [^\n]+-->\n)?```(?P<kind>python|console)\n(?P<text>.*?)```", re.DOTALL)
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
            words = shlex.split(line, comments=True)
            target = Path(words.pop()) if words[-2:-1] == [">"] and words.pop(-2) else None
            if "--ray" in words:  # a cluster ends with its process
                subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)
            elif words[:1] == ["vggdeploy"]:
                with target.open("w") if target else nullcontext() as out, redirect_stdout(out or sys.stdout):
                    assert run(words[1:]) == 0, line


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
