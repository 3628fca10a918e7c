"""What ``--help`` shows of each verb: an example, one line among the others, and the options that most people need. The rest
stands in ``--help-all``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from vggdeploy.cli import render

ALL = "--help-all"
WIDTH = 80  # no wider, so that a sentence stays a line that the eye can follow
_LEFT = 32  # letters of the column with names

START = (
    ("vggdeploy demo", "every step, on handwritten digits"),
    ("vggdeploy export my_vgg.pth -o my-bundle", "your weights, exported, proven"),
    ("vggdeploy --help", "every verb"),
)


@dataclass(frozen=True)
class Page:
    """``common``: the options that ``--help`` shows, by title; without any it shows all of them."""

    group: str
    example: str
    line: str
    common: tuple[tuple[str, str], ...] = ()


_FIRST, _MAKE, _PROVE, _USE = "Begin", "Make", "Prove and measure", "Use and ship"

PAGES: dict[str, Page] = {
    "demo": Page(_FIRST, "vggdeploy demo", "Every step on real digits: two minutes, no GPU"),
    "doctor": Page(_FIRST, "vggdeploy doctor", "Which backends run here, and what the others lack"),
    "explain": Page(_FIRST, "vggdeploy explain artifacts/demo/bundle", "A bundle in plain words, and what to do next"),
    "fit": Page(
        _FIRST,
        "vggdeploy fit photos/ -o photos-bundle --min-accuracy 92 --budget 20m",
        "From labelled pictures to the fastest proven network",
    ),
    "summary": Page(_FIRST, "vggdeploy summary vgg16", "Layers, shapes, parameters, multiply-accumulates"),
    "train": Page(
        _MAKE,
        "vggdeploy train --dataset folder:photos --image-size 64 -o photos-ckpt",
        "Train a VGG, and write its checkpoint",
        (
            ("Data and network", "--output --recipe --dataset --augment --arch --width --image-size --init"),
            ("Training", "--epochs --max-steps --batch-size --optimizer --lr --schedule --seed"),
            ("The run", "--resume --device --threads --force --json"),
        ),
    ),
    "curves": Page(_MAKE, "vggdeploy curves photos-ckpt", "Draw loss and accuracy over the epochs"),
    "evaluate": Page(_MAKE, "vggdeploy evaluate photos-ckpt", "Accuracy, each class, the confusion matrix"),
    "export": Page(
        _MAKE,
        "vggdeploy export my_vgg.pth --labels labels.txt -o my-bundle",
        "Weights to proven ONNX and TorchScript: a bundle",
        (
            ("Options", "--output --name --formats --outputs --max-batch --samples --threads --force --json"),
            ("Weights from elsewhere", "--weights --arch --image-size --labels --mean --std"),
        ),
    ),
    "optimize": Page(
        _MAKE,
        "vggdeploy optimize my-bundle --step int8",
        "Make it smaller or faster, step by step",
        (
            ("Options", "--step --output --max-accuracy-drop --samples --threads --force --json"),
            ("Steps prune, low-rank, sparse and qat", "--keep --rank --rank-keep --epochs --distill"),
            ("Steps int8 and fp8", "--calibration-data --calibration-images --int8-for"),
        ),
    ),
    "search": Page(
        _MAKE,
        "vggdeploy search photos-ckpt --max-accuracy-drop 1 -o photos-fast",
        "The fastest variant that keeps the accuracy",
    ),
    "build": Page(
        _MAKE,
        "vggdeploy build my-bundle",
        "A TensorRT engine in the bundle",
        (("Options", "--engine --precision --batch --target --device --workspace --opt-level --no-cache --json"),),
    ),
    "refit": Page(_MAKE, "vggdeploy refit my-bundle new-ckpt -o new-bundle", "New weights in engines without weights"),
    "verify": Page(
        _PROVE,
        "vggdeploy verify my-bundle",
        "Compare every variant with the FP32 original",
        (
            ("What", "--variant --backend --device --data --samples --layers --fleet --threads"),
            ("Limits", "--max-flips --max-accuracy-drop --tolerance"),
            ("Result", "--record --rebuild --json"),
        ),
    ),
    "bench": Page(
        _PROVE,
        "vggdeploy bench my-bundle --batch 1,8",
        "Latency and throughput, side by side",
        (
            ("What", "--backend --variant --batch --device --threads --data"),
            ("How", "--seconds --rounds --scenario --roof --gpu-detail --profile-layers"),
            ("A server", "--url --concurrency --rates --latency-bound --find-qps"),
            ("Result", "--record --require-valid --fail-if-slower --json"),
        ),
    ),
    "compare": Page(
        _PROVE, "vggdeploy compare old.json new.json --fail-if-slower 5%", "Two results of bench, side by side"
    ),
    "report": Page(_PROVE, "vggdeploy report verify.json bench.json -o report.html", "One page of several results"),
    "predict": Page(_USE, "vggdeploy predict my-bundle photo.jpg", "Classify images"),
    "embed": Page(
        _USE,
        "vggdeploy embed my-bundle photos/ --output fc7 -o vectors.npy",
        "Turn images into feature vectors",
        (
            (
                "Options",
                "-o --output --pool --normalize --batch --strict --backend --variant --device --threads --force",
            ),
            ("Many machines", "--ray"),
            ("Result", "--json"),
        ),
    ),
    "distance": Page(_USE, "vggdeploy distance my-bundle photo.jpg others/", "How different images look"),
    "nearest": Page(
        _USE, "vggdeploy nearest my-bundle vectors.parquet photo.jpg -o page.html", "The images that look most like one"
    ),
    "serve": Page(
        _USE,
        "vggdeploy serve my-bundle --port 8000",
        "Answer over HTTP, with a page to try it",
        (
            ("What", "--backend --variant --device --threads"),
            ("Where", "--host --port --token-file --workers"),
            ("Limits", "--max-batch --max-delay-ms --queue --timeout"),
        ),
    ),
    "package": Page(
        _USE, "vggdeploy package my-bundle --target oci --serve -o my-image", "For containers, Triton, C++, the web, …"
    ),
    "push": Page(_USE, "vggdeploy push my-bundle hf://me/my-vgg", "To the Hugging Face Hub, with a card of its proofs"),
    "pull": Page(_USE, "vggdeploy pull hf://me/my-vgg -o my-bundle", "From the Hub, as far as your policy trusts it"),
    "sign": Page(_USE, "vggdeploy sign my-bundle --new-key release.pem", "Sign every file of a bundle"),
    "verify-signature": Page(
        _USE, "vggdeploy verify-signature my-bundle --key release.pub", "Check who signed a bundle"
    ),
    "inspect": Page(_USE, "vggdeploy inspect my-bundle", "A bundle's files, and which variant is taken here"),
}

_show_all: ContextVar[bool] = ContextVar("show_all", default=False)


@contextmanager
def whole_help(wanted: bool) -> Iterator[None]:
    """Within it help shows every option."""
    token = _show_all.set(wanted)
    try:
        yield
    finally:
        _show_all.reset(token)


class Verb(TyperCommand):
    """A command whose help begins with an example, in the width of the terminal."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        page = _page(str(ctx.info_name), self)
        _line("Example: ", page.example)
        _line("Usage:   ", re.sub("[{}]", "", self.get_usage(ctx).removeprefix("Usage: ")))
        render.out.print()
        render.out.print(Text(" ".join((self.help or "").split())), width=_width(), soft_wrap=False)
        left = 0
        for title, parameters in _panels(self, ctx, page):
            left += 0 if title else len(parameters)
            if title:
                _panel(title, [_row(parameter) for parameter in parameters])
        if left:
            render.out.print(f"\n{left} more options: [bold]{ctx.command_path} {ALL}[/]")


class Verbs(TyperGroup):
    """All verbs, by what they are for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _line("Example: ", "vggdeploy demo")
        _line("Usage:   ", "vggdeploy VERB [OPTIONS]      vggdeploy VERB --help")
        render.out.print(Text(f"\n{self.help or ''}"), width=_width(), soft_wrap=False)
        verbs = {name: _page(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)}
        for group in dict.fromkeys(page.group for page in PAGES.values()):
            _panel(group, [(name, Text(page.line)) for name, page in verbs.items() if page.group == group])
        _panel("Options", [_row(p) for p in self.get_params(ctx) if not getattr(p, "hidden", False)])


def _page(name: str, command: Any) -> Page:
    """The page of a verb; without one, what its docstring and its arguments say."""
    arguments = [p.display_name_raw for p in command.params if p.param_type_name == "argument" and p.required]
    line = (command.help or "").partition(". ")[0].partition(":")[0].rstrip(".")
    return PAGES.get(name) or Page(_USE, " ".join(["vggdeploy", name, *arguments]), line)


def _line(lead: str, text: str) -> None:
    render.out.print(Text.assemble((lead, "bold"), text))


def _width() -> int:
    return min(render.out.width, WIDTH)


def _panels(command: TyperCommand, ctx: Any, page: Page) -> Iterator[tuple[str, list[Any]]]:
    """Titles with their parameters, arguments first; under "" those that are left out."""
    parameters = [p for p in command.get_params(ctx) if not getattr(p, "hidden", False)]
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    if arguments:
        yield "Arguments", arguments
    by_flag = {flag: p for p in parameters if p not in arguments for flag in p.opts}
    rest = list(dict.fromkeys(by_flag.values()))
    for title, flags in page.common:
        shown = [by_flag[flag] for flag in flags.split() if flag in by_flag]
        rest = [p for p in rest if p not in shown]
        yield title, shown
    if page.common and not _show_all.get():
        rest = [p for p in rest if "--help" not in p.opts]
        yield "", rest
        return
    groups: dict[str, list[Any]] = {}
    for p in rest:
        title = getattr(p, "rich_help_panel", None) or ("Further options" if page.common else "Options")
        groups.setdefault(title, []).append(p)
    yield from groups.items()


def _row(parameter: Any) -> tuple[str, Text]:
    """How a parameter is typed, and what it is."""
    if parameter.param_type_name == "argument":
        return parameter.display_name_raw, _told(parameter)
    names = ", ".join(sorted(parameter.opts, key=len))
    names += "".join(f" / {name}" for name in parameter.secondary_opts)
    if not (parameter.is_flag or parameter.secondary_opts):
        kind = "".join(c for c in parameter.bare_type().rpartition("[")[2] if c.isalpha()).upper()
        names += f" {parameter.metavar or {'STR': 'TEXT', 'INT': 'N', 'FLOAT': 'X'}.get(kind, kind)}"
    return names, _told(parameter)


def _told(parameter: Any) -> Text:
    text = Text(" ".join((parameter.help or "").split()))
    default = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    if parameter.required:
        text.append(" [required]", "red")
    elif default not in (None, "", False, True, ()) and "Default:" not in text.plain and not callable(default):
        text.append(f" [default: {default}]", "dim")
    return text


def _panel(title: str, rows: list[tuple[str, Text]]) -> None:
    if not rows:
        return
    drawn = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 1))
    drawn.add_column(width=min(_LEFT, max(len(name) for name, _ in rows)), overflow="fold")
    drawn.add_column(overflow="fold")
    for name, told in rows:
        drawn.add_row(Text(name, "cyan"), told)
    render.out.print()
    render.out.print(drawn, width=_width(), soft_wrap=False)
