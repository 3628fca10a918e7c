"""What a file, a library or a name says never moves the cursor, styles a line or turns it around in a terminal."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from attacks.planting import rewrite_onnx
from onnx import TensorProto, helper
from rich.text import Text

from vggdeploy.bundle import Bundle, Manifest, update_bundle
from vggdeploy.bundle.manifest import parse_manifest, seal
from vggdeploy.cli import render
from vggdeploy.cli.app import run
from vggdeploy.errors import VggdeployError
from vggdeploy.records import json_text, to_json

# CSI and OSC with ESC and as C1 control, a title, a new line with a forged error, a bell, and letters in reverse.
HOSTILE = "x\x1b[2J\x1b]0;owned\x07\x9b31m\x1b[1A\u202egnp.exe\u2066\r\nerror: forged\x7f\x00[red]y[/]"
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def commands(text: str) -> list[str]:
    """Letters that a terminal obeys; only tabs and line ends are none."""
    return COMMANDS.findall(text)


def hostile(value: Any) -> Any:
    """A document whose every string is the worst."""
    if isinstance(value, dict):
        return {key: hostile(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    return value + HOSTILE if isinstance(value, str) else value


def strings(value: Any, path: tuple[Any, ...] = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(inner, str):
            yield (*path, key)
        else:
            yield from strings(inner, (*path, key))


def look(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    look(value, path[:-1])[path[-1]] = new


@pytest.fixture(scope="module")
def hostile_bundle(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that opens, with every text of its manifest hostile that may be any text."""
    root = tmp_path_factory.mktemp("hostile") / "bundle"
    shutil.copytree(bundle_dir, root)
    bundle = Bundle.open(root)
    document = json.loads(to_json(bundle.manifest))
    for place in list(strings(document)):
        before = look(document, place)
        identifies = re.search("sha256|digest|created|backend|'name'|library", str(place)) and place != ("name",)
        if identifies or (before and (root / before).exists()):
            continue
        put(document, place, before + HOSTILE)
        try:
            parse_manifest(seal(msgspec.convert(document, Manifest)), where="")
        except (msgspec.ValidationError, VggdeployError):
            put(document, place, before)
    with update_bundle(bundle) as draft:
        draft.manifest = msgspec.convert(document, Manifest)
    Bundle.open(root)
    assert json.dumps(document).count("owned") >= 12  # name, labels, data of proofs
    return root


VERBS = {
    "inspect": ["inspect", "{bundle}"],
    "explain": ["explain", "{bundle}"],
    "summary": ["summary", "{bundle}"],
    "predict": ["predict", "{bundle}", "{image}"],
    "verify": ["verify", "{bundle}", "--variant", "onnx-fp32"],
    "evaluate": ["evaluate", "{bundle}", "--samples", "20"],
    "missing": ["predict", "{bundle}", "{missing}"],
    "unknown": ["predict", "{bundle}", "{image}", "--variant", HOSTILE],
    "option": ["predict", f"--{HOSTILE}"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("as_json", [False, True])
def test_no_verb_passes_on_what_a_bundle_or_a_name_says(
    verb: str, as_json: bool, hostile_bundle: Path, digit_png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = HOSTILE.replace("/", "").replace("\0", "")
    image = shutil.copy(digit_png, tmp_path / f"{name}.png")
    words = {"bundle": str(hostile_bundle), "image": str(image), "missing": str(tmp_path / f"{name}.jpg")}
    line = [words.get(part.strip("{}"), part) for part in VERBS[verb]]
    run([*line, *(["--json"] if as_json else [])])
    told = capsys.readouterr()
    assert told.out + told.err
    assert commands(told.out) == []
    assert commands(told.err) == []
    if not as_json:
        assert not any(text.startswith("error: forged") for text in (told.out + told.err).splitlines())
    elif told.out:
        json.loads(told.out)


@pytest.fixture(scope="module")
def verified(bundle_dir: Path) -> str:
    """What `verify --json` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "vggdeploy", "verify", bundle_dir, "--variant", "onnx-fp32", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("suffix", ["html", "md", "csv"])
def test_a_report_shows_them_as_text(suffix: str, verified: str, tmp_path: Path) -> None:
    result = json.loads(verified)
    for place in ("bundle", "notes"):
        if place in result:
            result[place] = hostile(result[place])
    for row in result["variants"]:
        row["reasons"], row["data"] = hostile([*row["reasons"], "reason"]), hostile(row["data"])
    (tmp_path / "parity.json").write_text(json.dumps(result))
    out = tmp_path / f"report.{suffix}"
    assert run(["report", str(tmp_path / "parity.json"), "-o", str(out)]) == 0
    text = out.read_text()
    if suffix == "html":  # the drawing library's own code has such letters in its patterns
        text = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "owned" in text
    assert commands(text) == []


def drawn(*what: Any) -> str:
    """What a real terminal would get."""
    stream = io.StringIO()
    console = render._Terminal(file=stream, force_terminal=True, width=200, highlight=False, emoji=False)
    console.print(*what)
    return stream.getvalue()


def test_on_a_terminal_the_only_codes_are_those_of_our_own_markup() -> None:
    for text in (HOSTILE, Text(HOSTILE), f"[bold]{render.escape(HOSTILE)}[/]"):
        assert commands(re.sub("\x1b\\[[0-9;]*m", "", drawn(text))) == []
    assert "\x1b[1m" in drawn("[bold]x[/]")
    assert "[red]y" in drawn(render.escape(HOSTILE))


def test_progress_is_cleaned_too() -> None:
    stream = io.StringIO()
    console = render._Terminal(file=stream, force_terminal=True, width=120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "err", console)
        with render.progress() as tell:
            tell(0.5, HOSTILE)
    shown = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]|\r", "", stream.getvalue())
    assert commands(shown) == []
    assert "\x1b[2J" not in stream.getvalue()
    assert "\x1b]0" not in stream.getvalue()


def test_whatever_a_library_says_is_cleaned_on_its_way(tmp_path: Path) -> None:
    program = f"""
import logging, sys, threading, warnings
from vggdeploy.bundle.manifest import parse_manifest, seal
from vggdeploy.cli import render
render.guard_streams()
text = {HOSTILE!r}
print(text)
sys.stderr.write(text)
warnings.warn(text)
logging.getLogger("a.library").error(text)
def fail(): raise RuntimeError(text)
thread = threading.Thread(target=fail); thread.start(); thread.join()
render.error_line(text, text)
render.emit_json({{"a": text}})
fail()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("owned") >= 7
    assert done.stdout.count("owned") == 2
    assert commands(done.stdout + done.stderr) == []
    assert json.loads(done.stdout[done.stdout.index("{\n") :])["a"] == HOSTILE


def test_debug_shows_a_clean_traceback(tmp_path: Path) -> None:
    missing = tmp_path / HOSTILE.replace("/", "").replace("\0", "")
    done = subprocess.run(
        [sys.executable, "-m", "vggdeploy", "inspect", missing, "--debug"], capture_output=True, text=True, check=False
    )
    assert "Traceback" in done.stderr
    assert commands(done.stderr) == []


def test_onnx_runtime_itself_writes_nothing(own_bundle: Path, digit_png: Path) -> None:
    """Its log goes to the descriptor, by every stream of Python's; the names in it are a file's."""

    def gather_out_of_bounds(model: onnx.ModelProto) -> None:
        graph = model.graph
        image = graph.input[0].name
        far = helper.make_tensor("far", TensorProto.INT64, [1], [10_000])
        graph.initializer.append(far)
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name == image:
                    node.input[index] = "gathered"
        graph.node.insert(0, helper.make_node("Gather", [image, "far"], ["gathered"], name=HOSTILE, axis=1))
        del graph.value_info[:]

    rewrite_onnx(own_bundle, "onnx-fp32", gather_out_of_bounds)
    done = subprocess.run(
        [sys.executable, "-m", "vggdeploy", "predict", own_bundle, digit_png, "--variant", "onnx-fp32"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert commands(done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")) == []


def test_json_stays_the_same_document() -> None:
    record = {"a": HOSTILE, "b": "écru 猫 \N{FAMILY}"}
    text = json_text(to_json(record))
    assert json.loads(text) == record
    assert commands(text) == []
    assert "écru 猫" in text


def test_a_progress_bar_of_a_library_keeps_its_line() -> None:
    stream = io.StringIO()
    plain = render.Plain(stream)
    plain.write("\r 50%|████")
    plain.write("a\rb\tc\n")
    assert stream.getvalue() == "\r 50%|████a\\rb\tc\n"
    with warnings.catch_warnings(record=True):
        assert plain.isatty() is False
