"""Help that fits a terminal: an example first, 80 columns, under 60 lines, every option in ``--help-all``."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from vggdeploy.cli.app import app, run
from vggdeploy.cli.help_pages import PAGES, START

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def shown(line: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert run(line) == 0
    return capsys.readouterr().out.splitlines()


def flags(lines: list[str]) -> set[str]:
    """The flags in the left column."""
    return {flag for line in lines for flag in re.findall(r"(?<![a-z-])(--?[a-z][a-z0-9-]*)", line[:36])}


def test_every_page_is_of_a_verb() -> None:
    assert set(PAGES) <= set(COMMANDS)


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_begins_with_an_example_and_fits(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggdeploy.cli.render.out._width", 80)
    lines = shown([verb, "--help"], capsys)
    assert lines[0].startswith(f"Example: vggdeploy {verb}")
    assert max(map(len, lines)) <= 80
    assert len(lines) < 60
    whole = shown([verb, "--help-all"], capsys)
    assert max(map(len, whole)) <= 80
    wanted = {
        flag for p in COMMANDS[verb].params if p.param_type_name == "option" for flag in (*p.opts, *p.secondary_opts)
    }
    assert wanted <= flags(whole)
    required = {p.opts[0] for p in COMMANDS[verb].params if p.required and p.param_type_name == "option"}
    assert required <= flags(lines)
    missing = wanted - flags(lines)
    assert bool(missing) == any("more options" in line for line in lines)


def test_a_verb_without_a_page_has_help_all_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(PAGES, "predict")
    lines = shown(["predict", "--help"], capsys)
    assert lines[0] == "Example: vggdeploy predict BUNDLE IMAGE"
    assert any(line.split()[:2] == ["predict", "Classify"] for line in shown(["--help"], capsys))


@pytest.mark.parametrize("verb", PAGES)
def test_a_page_names_options_that_are_there_each_once(verb: str) -> None:
    named = [flag for _, text in PAGES[verb].common for flag in text.split()]
    assert len(named) == len(set(named))
    assert set(named) <= {flag for p in COMMANDS[verb].params for flag in p.opts}


@pytest.mark.parametrize("verb", PAGES)
def test_the_example_is_a_line_that_the_command_line_takes(verb: str) -> None:
    _, name, *rest = shlex.split(PAGES[verb].example)
    assert name == verb
    COMMANDS[verb].make_context(verb, rest)


@pytest.mark.parametrize("line", [line for line, _ in START])
def test_the_lines_to_start_are_taken(line: str) -> None:
    _, verb, *rest = shlex.split(line)
    if verb != "--help":
        COMMANDS[verb].make_context(verb, rest)


def test_the_list_of_verbs_fits_with_a_line_for_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggdeploy.cli.render.out._width", 80)
    lines = shown(["--help"], capsys)
    assert max(map(len, lines)) <= 80
    assert len(lines) < 60
    assert {line.split()[0] for line in lines if line.strip()} >= set(COMMANDS)


def on_a_terminal(*line: str) -> str:
    """What a real terminal gets."""
    main, side = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")} | {"TERM": "xterm-256color"}
    with subprocess.Popen(
        [sys.executable, "-m", "vggdeploy", *line], stdout=side, stderr=side, stdin=side, env=environment
    ) as process:
        os.close(side)
        text = b""
        try:
            while part := os.read(main, 65536):
                text += part
        except OSError:  # Linux says so at the end
            pass
        process.wait(60)
    os.close(main)
    return text.decode()


@pytest.mark.parametrize("line", [["--help"], ["predict", "--help"], []])
def test_on_a_terminal_help_has_styles_and_no_codes_as_text(line: list[str]) -> None:
    text = on_a_terminal(*line)
    assert "\x1b[1m" in text
    assert "\\x1b" not in text
    assert "Example" in text or not line


def test_quiet_leaves_results_and_errors(
    bundle_dir: Path, digit_png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(bundle_dir), str(digit_png)]) == 0
    loud = capsys.readouterr()
    assert loud.err
    for line in (["--quiet", "predict"], ["predict", "-q"], ["predict", "--quiet"]):
        assert run([*line, str(bundle_dir), str(digit_png)]) == 0
        told = capsys.readouterr()
        assert told.out == loud.out
        assert told.err == ""
    assert run(["predict", "-q", str(tmp_path / "none"), str(digit_png)]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_a_file_called_quiet_can_be_named(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(bundle_dir), "--", "--quiet"]) == 1
    assert "--quiet does not exist" in capsys.readouterr().err
