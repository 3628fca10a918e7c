"""Each flag belongs to a verb and a mode: elsewhere it is refused, and what messages and helps name is there."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import typer

import vggdeploy
from vggdeploy.cli import bench, embed, fit, optimize, predict, search, serve, verify
from vggdeploy.cli.app import app, run

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
WITH_MODES = {
    "bench": bench,
    "embed": embed,
    "fit": fit,
    "optimize": optimize,
    "predict": predict,
    "serve": serve,
    "verify": verify,
}
ARGUMENTS = {
    "bench": ["x"],
    "embed": ["x", "y", "-o", "v.npy"],
    "fit": ["x", "-o", "y"],
    "predict": ["x", "y"],
    "serve": ["x"],
    "verify": ["x"],
}
CASES = [
    (verb, flag, mode) for verb, module in WITH_MODES.items() for flag, modes in module.MODES.items() for mode in modes
]
# Flags of other programs, which hints name, and of this one's past.
FOREIGN = {
    "git": "--always --dirty --abbrev --exclude",
    "pip, apt": "--reinstall --force-reinstall --no-cache-dir --download-only --no-install-recommends --no-deps --only-binary "
    "--platform --python-version --disable-pip-version-check",
    "npm": "--ignore-scripts --no-audit --no-fund --prefix --pack-destination",
    "python -m http.server": "--bind --directory",
    "chromium": "--headless --no-sandbox --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --enable-unsafe-webgpu --use-webgpu-adapter --user-data-dir",
    "docker": "--rm --read-only --gpus --interval --start-period --system --uid --no-create-home",
    "cmake, triton, ray, torchrun": "--build --model-repository --head --nproc-per-node",
    "trtexec": "--load --shapes --warm --inf --expose --use --include",
    "the report's colours": "--ground",
    "bench, before compare": "--compare",
    "mlflow": "--env-manager",
}

EVERYWHERE = {"--help", "--help-all", "--debug", "--quiet"}


def flags_of(command: Any) -> set[str]:
    return {"--help", "--help-all", "--debug", "--quiet"} | {
        flag for p in command.params for flag in (*p.opts, *p.secondary_opts)
    }


def typed(verb: str, mode: str) -> list[str]:
    """A flag with a value, or a mode that has its own."""
    flag, _, value = mode.partition(" ")
    (found,) = [p for p in COMMANDS[verb].params if flag in p.opts]
    return [flag] if found.is_flag else [flag, value or "1"]


@pytest.mark.parametrize(("verb", "flag", "mode"), CASES)
def test_a_flag_of_another_mode_is_refused_by_name_before_any_work(
    verb: str, flag: str, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [verb, *ARGUMENTS.get(verb, ["x", "--step", "prune" if flag == "--samples" else "openvino-bf16"])]
    if mode.startswith("without "):
        line += [*typed(verb, mode.removeprefix("without "))]
    assert run([*line, *typed(verb, flag)]) == 2
    cause = capsys.readouterr().err.splitlines()[0]
    assert cause.startswith(f"error: {flag} ")
    assert mode.removeprefix("without ") in cause


@pytest.mark.parametrize(("verb", "flag", "mode"), [case for case in CASES if not case[2].startswith("without ")])
def test_a_flag_with_its_mode_is_taken(verb: str, flag: str, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = [verb, *ARGUMENTS.get(verb, ["x"]), *typed(verb, mode), *typed(verb, flag)]
    run(line)  # it ends at x, which is nowhere, or at a value
    assert "which is not asked for" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "optimize net --max-accuracy-drop 0.5 --budget 3 -o 'a b'",
            "search net --max-accuracy-drop 0.5 --budget 3 -o 'a b'",
        ),
        ("optimize --max-accuracy-drop=1 net", "search --max-accuracy-drop=1 net"),
        ("bench --compare a.json b.json --fail-if-slower 5%", "compare a.json b.json --fail-if-slower 5%"),
        ("bench a.json b.json --json --compare", "compare a.json b.json --json"),
    ],
)
def test_the_old_spelling_of_a_verb_answers_with_the_new_one(
    old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shlex.split(old)) == 2
    assert capsys.readouterr().err.splitlines()[1].endswith(f": vggdeploy {new}")


@pytest.mark.parametrize(
    ("line", "verb"),
    [
        ("optimize x --step prune --budget 3", "fit and vggdeploy search"),
        ("search x -o y --max-accuracy-drop 1 --rank-keep 0.5", "optimize"),
    ],
)
def test_a_flag_of_another_verb_is_answered_with_that_verb(
    line: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line.split()) == 2
    assert f"belongs to vggdeploy {verb};" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["-o y", "--max-accuracy-drop 1"])
def test_a_search_has_a_goal_and_an_output(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "x", *missing.split()]) == 2
    assert "Missing option" in capsys.readouterr().err


def test_defaults_of_the_command_line_are_those_of_the_records() -> None:
    from vggdeploy.bench.run import DEFAULT_ROUNDS
    from vggdeploy.embed.cluster import RayOptions
    from vggdeploy.optimize.steps.calibration import Int8Options
    from vggdeploy.optimize.tuning import Tuning
    from vggdeploy.search.search import Settings
    from vggdeploy.verify.samples import DEFAULT_SAMPLES

    def defaults(command: Any) -> dict[str, Any]:
        return {name: p.default for name, p in signature(command).parameters.items()}

    step, found = defaults(optimize.optimize), defaults(search.search)
    assert Tuning(epochs=step["epochs"], lr=step["lr"], distill=step["distill"]) == Tuning()
    assert (
        Int8Options(
            data=step["calibration_data"], images=step["calibration_images"], method=step["calibration_method"],
            percentile=step["percentile"], targets=tuple(step["int8_for"].split(",")),
        )
        == Int8Options()
    )  # fmt: skip
    whole = Settings()
    assert {name: found[name] for name in ("seed", "epochs", "threads", "samples")} == {
        name: getattr(whole, name) for name in ("seed", "epochs", "threads", "samples")
    }
    assert step["samples"] == int(defaults(verify.verify)["samples"]) == DEFAULT_SAMPLES
    assert defaults(bench.bench)["rounds"] == DEFAULT_ROUNDS
    assert defaults(embed.embed)["shard"] == defaults(predict.predict)["shard"] == RayOptions().size


def texts() -> Iterator[tuple[str, str]]:
    """Every string of the package with its file and line; what is filled in is ``{}``."""
    root = Path(vggdeploy.__file__).parent
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = [node.value]
            else:
                continue
            yield f"{file.relative_to(root)}:{node.lineno}", "".join(parts)


def test_every_flag_that_the_package_names_is_one_of_a_command() -> None:
    root = {"--version", "--install-completion", "--show-completion"}
    known = root.union(*map(flags_of, COMMANDS.values()), *(flags.split() for flags in FOREIGN.values()))
    named = {(where, flag) for where, text in texts() for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)}
    assert len(named) > 200
    assert not {(where, flag) for where, flag in named if flag not in known}


def test_every_flag_on_a_line_that_is_shown_is_one_of_its_verb() -> None:
    lines = [
        (where, *match.groups())
        for where, text in texts()
        for match in re.finditer(r"vggdeploy ([a-z-]+)\b([^;,:()`\n]*)", text)
        if match[1] in COMMANDS
    ]
    wrong = [
        (where, verb, flag)
        for where, verb, rest in lines
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", rest)
        if flag not in flags_of(COMMANDS[verb])
    ]
    assert len(lines) > 30
    assert not wrong


def test_every_option_of_optimize_that_one_step_has_stands_in_the_table() -> None:
    shared = {
        "source",
        "--help",
        "--help-all",
        "--debug",
        "--quiet",
        "--step",
        "--output",
        "-o",
        "--data-dir",
        "--threads",
        "--force",
        "--json",
    }
    assert flags_of(COMMANDS["optimize"]) - shared == set(optimize.MODES)
