"""Every command that a message prints is one that this command line takes: all of it, not only its flags."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file

import vggdeploy
from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import app, run
from vggdeploy.types import Verdict

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
ROOT = Path(vggdeploy.__file__).parent
# A command ends at what no path and no option has: a bracket, a semicolon, a comma or full stop before a space.
LINE = re.compile(r"(?<![\w'./-])vggdeploy ([a-z][a-z-]*)\b([^;()`\n]*)")
END = re.compile(r"(?:, (?!\d)|: |\. |[,.]$)")
# Words that follow our name in a sentence, and are no verb.
WORDS = {"bundle", "does", "has", "is", "made", "reads", "writes", "wrote"}


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Every string but the docstrings, with its line; what is filled in is ``1``."""
    tree = ast.parse(source)
    inside = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            inside.add(id(body[0].value))
        if isinstance(node, ast.JoinedStr):
            inside.update(id(part) for part in node.values)
            yield node.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else "1" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def commands(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, verb and arguments of each command in the strings of a file."""
    for number, text in texts(source):
        for found in LINE.finditer(text):
            if found[1] not in WORDS:
                yield number, found[1], END.split(found[2])[0]


def refusal(verb: str, rest: str) -> str:
    """What the command line says of these arguments; "" when it takes them."""
    if verb not in COMMANDS:
        return "no such verb"
    try:
        COMMANDS[verb].make_context(verb, shlex.split(rest))
    except typer.Exit:  # --help
        return ""
    except Exception as error:
        return str(error.format_message() if hasattr(error, "format_message") else error)
    return ""


def test_every_command_in_the_package_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        (f"{file.relative_to(ROOT)}:{number}", verb, rest)
        for file in sorted(ROOT.rglob("*.py"))
        for number, verb, rest in commands(file.read_text(encoding="utf-8"))
    ]
    wrong = [(where, f"{verb}{rest}", why) for where, verb, rest in found if (why := refusal(verb, rest))]
    assert len(found) > 100
    assert not wrong


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('"run: vggdeploy verify"', "Missing argument"),
        ('f"see {x}: vggdeploy bench {root} --max-flips 3"', "No such option"),
        ('"vggdeploy convert BUNDLE"', "no such verb"),
        ('"vggdeploy bench BUNDLE --target-qps Q"', "Invalid value"),
        ('"add it: vggdeploy export my.pth"', "Missing option"),
        ('f"again: vggdeploy optimize {root} --step int8, or leave it"', ""),
        ('"schema 3 (vggdeploy reads version 2)"', None),
    ],
)
def test_a_command_that_does_not_work_is_found(text: str, why: str | None) -> None:
    found = list(commands(f"x = {text}"))
    assert len(found) == (why is not None)
    for _, verb, rest in found:
        assert bool(refusal(verb, rest)) == bool(why)
        assert why in refusal(verb, rest)  # type: ignore[operator]


def told(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Cause and remedy of a line that does not work."""
    assert run(shlex.split(line)) in (1, 2, 5)
    cause, fix = (x for x in capsys.readouterr().err.splitlines() if x.startswith(("error:", "  fix:")))
    return cause, fix


def follow(fix: str) -> int:
    """Run the command that a remedy has, as it is printed."""
    [line] = re.findall(r"vggdeploy [^;()]*", fix)
    return run(shlex.split(line)[1:])


def test_a_variant_for_openvino_is_made_beside_the_others(
    own_bundle: Path, digit_png: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {v.name for v in Bundle.open(own_bundle).manifest.variants}
    line = f"predict {own_bundle} {digit_png} --backend openvino"
    _, fix = told(line, capsys)
    assert follow(fix) == 0
    assert {v.name for v in Bundle.open(own_bundle).manifest.variants} > before
    assert run(shlex.split(line)) == 0


def test_a_bundle_where_a_checkpoint_belongs_names_the_one_inside(
    bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cause, fix = told(f"export {bundle_dir} -o {tmp_path / 'b'}", capsys)
    assert "is a bundle, not a checkpoint" in cause
    inside = fix.split(": ")[-1]
    assert run(["export", inside, "-o", str(tmp_path / "b"), "--formats", "onnx-fp32"]) == 0


def test_an_export_on_few_images_says_which_verdict_is_open_and_how_to_close_it(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "b"
    assert run(["export", str(checkpoint), "-o", str(root), "--formats", "onnx-fp32", "--samples", "40"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"numerical +[│┃] +bounds", shown)
    assert re.search(r"onnx-fp32 +│ ✔ pass +│ \? inconclusive", shown)
    assert "0 of 40 top-1 classes changed" in shown
    assert run(["verify", str(root), "--samples", "40", "--json"]) == 4  # not shown to hold, and not wrong
    *_, real = json.loads(capsys.readouterr().out)["variants"]
    assert (real["numerical"], real["bounds"], real["verdict"]) == ("pass", "inconclusive", "inconclusive")
    [line] = re.findall(rf"vggdeploy verify {root} --max-flips \S+ --record", shown)
    assert run([*shlex.split(line)[1:], "--samples", "40"]) == 0
    assert Bundle.open(root).manifest.variant("onnx-fp32").verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("predict {bundle}s {image}", "did you mean {bundle}?"),
        ("inspect {bundle}s", "did you mean {bundle}?"),
        ("evaluate {bundle}s", "did you mean {bundle}?"),
        ("summary {bundle}s", "did you mean {bundle}?"),
        ("predict {bundle} {image}s", "did you mean {image}?"),
        ("export {checkpoint}s -o x", "did you mean {checkpoint}?"),
        ("train -o x --init {checkpoint}s", "did you mean {checkpoint}?"),
        ("train -o x --dataset folder:{checkpoint}s", "did you mean {checkpoint}?"),
        ("report {bundle}/manifst.json -o x.html", "did you mean {bundle}/manifest.json?"),
        ("predict {bundle} {image} --backend onx", "did you mean 'onnxruntime'?"),
        ("predict {bundle} {image} --backend ort2", "did you mean 'onnxruntime'?"),
        ("predict {bundle} {image} --variant onnx-fp61", "did you mean 'onnx-fp16'?"),
        ("export {checkpoint} -o x --outputs fc8", "give: --outputs logits"),
        ("serve {bundle} --port 99999", "a port from 1 to 65535"),
        ("export {keras} -o x", "torch.save(model.state_dict(), FILE)"),
    ],
)
def test_a_slip_is_answered_with_what_is_there(
    line: str,
    answer: str,
    bundle_dir: Path,
    checkpoint: Path,
    digit_png: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    keras = tmp_path / "my.keras"
    keras.write_bytes(b"PK\x03\x04" + bytes(100))
    there = {"bundle": bundle_dir, "image": digit_png, "checkpoint": checkpoint, "keras": keras}
    _, fix = told(line.format(**there), capsys)
    assert answer.format(**there) in fix
    assert list(tmp_path.iterdir()) == [keras]


@pytest.mark.parametrize(
    ("spoil", "answer"),
    [
        (lambda state: state["features.0.weight"].fill_(float("nan")), "its training diverged"),
        (lambda state: state.update({"decoder.weight": torch.zeros(2)}), "save the VGG alone"),
    ],
)
def test_weights_that_do_not_fit_say_what_helps(
    spoil: Callable[[dict[str, torch.Tensor]], object],
    answer: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = {name: tensor.clone() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    spoil(state)
    torch.save(state, tmp_path / "my.pth")
    line = f"export {tmp_path / 'my.pth'} -o {tmp_path / 'b'} --image-size 32 --mean 0.3 --std 0.3"
    assert answer in told(line, capsys)[1]
