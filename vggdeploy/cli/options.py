"""Options that several commands share, and the habits from other tools that are answered by name."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from vggdeploy.cli import render
from vggdeploy.errors import UsageError

if TYPE_CHECKING:
    from vggdeploy.bundle import Bundle
    from vggdeploy.records import Record

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what stands at the output directory.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads to compute with. Default: every core.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where data sets are, or are downloaded to. Default: the user cache.")
]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle: the directory that 'export' made.")]
BundlePaths = Annotated[
    list[Path] | None,
    typer.Argument(metavar="BUNDLE", help="One bundle, or several to measure beside each other.", show_default=False),
]
DeviceName = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda or cuda:INDEX. Default: the backend's first.")
]
Rebuild = Annotated[
    bool,
    typer.Option(
        "--rebuild", help="Build engines that do not fit this machine anew, from the bundle's ONNX, and prove them."
    ),
]

# What users of trtexec, Ultralytics and others type, and what to type here.
HABITS = {
    "fp16": "precision is an option with a value: --precision fp16",
    "half": "precision is an option with a value: --precision fp16",
    "int8": "precision is an option with a value: --precision int8",
    "bf16": "precision is an option with a value: --precision bf16",
    "fp8": "precision is an option with a value: --precision fp8",
    "tf32": "precision is an option with a value: --precision tf32",
    "notf32": "TF32 is off unless it is asked for: --precision fp32 is FP32",
    "format": "'export' writes ONNX and TorchScript; engines come from: vggdeploy build BUNDLE --engine tensorrt-rtx",
    "imgsz": "the image size belongs to the model: vggdeploy train --image-size 224 -o CHECKPOINT",
    "shapes": "give the batch profile: --batch 1:8:32",
    "minshapes": "give the batch profile: --batch 1:8:32",
    "optshapes": "give the batch profile: --batch 1:8:32",
    "maxshapes": "give the batch profile: --batch 1:8:32",
    "mempoolsize": "give the workspace: --workspace 2GiB",
    "builderoptimizationlevel": "give the level: --opt-level 5",
    "timingcachefile": "name the file: --timing-cache FILE",
    "hardwarecompatibilitylevel": "give ampere+ or same-cc: --hardware-compatible same-cc",
    "versioncompatible": "the option is --version-compatible",
    "sparsity": "the option is --sparse",
    "workers": "threads are set with --threads",
    "concurrency-range": "give the callers: --url URL --concurrency 1:8:1",
    "request-rate-range": "give the rates: --url URL --rates 50,100",
}

# What people who know other tools type for a verb.
VERBS = {
    **dict.fromkeys(("convert", "onnx", "torchscript", "deploy"), "export"),
    **dict.fromkeys(("benchmark", "profile", "time", "speed"), "bench"),
    **dict.fromkeys(("infer", "inference", "classify", "run", "detect"), "predict"),
    **dict.fromkeys(("quantize", "quantise", "optimise", "prune", "compress"), "optimize"),
    **dict.fromkeys(("compile", "engine", "trtexec", "tensorrt"), "build"),
    **dict.fromkeys(("test", "val", "validate", "eval", "accuracy"), "evaluate"),
    **dict.fromkeys(("check", "parity", "prove"), "verify"),
    **dict.fromkeys(("info", "show", "list", "ls"), "inspect"),
    **dict.fromkeys(("describe", "about", "what"), "explain"),
    **dict.fromkeys(("finetune", "fine-tune"), "train"),
    **dict.fromkeys(("tune", "autotune", "automl"), "search"),
    **dict.fromkeys(("server", "start", "http"), "serve"),
    **dict.fromkeys(("features", "vectors"), "embed"),
    **dict.fromkeys(("env", "version", "status"), "doctor"),
}

# Flag → the modes that it belongs to, each as it is typed: "--ray", or "--step prune" for one of the values of --step. One
# of them has to be on the line; of "without --ray" each has to hold.
Modes = Mapping[str, tuple[str, ...]]
_WITHOUT = "without "
_MOST = 1000  # numbers of a range


def check_modes(context: typer.Context, modes: Modes) -> None:
    """Refuse what is typed and belongs to a mode that is not asked for: no flag is ignored in silence.

    Raises:
        UsageError: such a flag, the first in the order of the help; named with the mode that is missing, or in the way.
    """
    given = {
        flag: context.params.get(str(p.name))
        for p in context.command.params
        if typed(context, str(p.name))
        for flag in p.opts
    }
    for flag in filter(modes.__contains__, given):
        needed = [mode for mode in modes[flag] if not mode.startswith(_WITHOUT)]
        if needed and not any(_asked(mode, given) for mode in needed):
            raise UsageError(
                f"{flag} belongs to {_either(needed)}, which is not asked for", f"add {needed[0]}, or leave {flag} out"
            )
        for other in (mode.removeprefix(_WITHOUT) for mode in modes[flag] if mode.startswith(_WITHOUT)):
            if _asked(other, given):
                raise UsageError(f"{flag} does not go with {other}", f"leave {flag} out, or {other}")


def typed(context: typer.Context, name: str) -> bool:
    """Whether the option ``name`` stands on the line, and is no default."""
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _asked(mode: str, given: Mapping[str, object]) -> bool:
    flag, _, value = mode.partition(" ")
    return flag in given and (not value or value in split_names(str(given[flag])))


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def split_names(text: str) -> list[str]:
    """``"a, b"`` → ``["a", "b"]``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def split_numbers(text: str) -> list[int]:
    """``"1,8"`` → ``[1, 8]``.

    Raises:
        UsageError: something in it is not a whole number above 0.
    """
    parts = split_names(text)
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"'{text}' is not a list of batch sizes", "give whole numbers above 0, for example 1,8,32")
    return [int(part) for part in parts]


def number_list(text: str, option: str) -> list[float]:
    """``"1,2,4"``, or ``FIRST:LAST:STEP`` as perf_analyzer takes it; nothing for nothing.

    Raises:
        UsageError: something in it is no number above 0, or the range is of thousands.
    """
    example = f"give numbers above 0, for example {option} 1,2,4 or {option} 1:8:1"
    wrong = UsageError(f"'{text}' is no list of numbers for {option}", example)
    found: list[float] = []
    for part in split_names(text):
        try:
            ends = [float(piece) for piece in part.split(":")]
        except ValueError:
            raise wrong from None
        if not 1 <= len(ends) <= 3 or not all(0 < end < 1e9 for end in ends):
            raise wrong
        first, last, step = (*ends, ends[0], 1.0)[:3] if len(ends) < 2 else (*ends, 1.0)[:3]
        if last < first or (last - first) / step > _MOST:
            raise wrong
        # A step of 0.1 is none of the numbers of a computer: the last one may be missed by the last digit.
        found += [first + index * step for index in range(int((last - first) / step + 1e-6) + 1)]
    return found


def cpu_list(text: str) -> list[int]:
    """``"0-2,8"`` → ``[0, 1, 2, 8]``, as ``taskset -c`` takes it; nothing for nothing.

    Raises:
        UsageError: something in it is no CPU number and no range.
    """
    cpus: set[int] = set()
    for part in split_names(text):
        first, dash, last = part.partition("-")
        numbers = [first, last] if dash else [first]
        if not all(number.isdecimal() and len(number) <= 5 for number in numbers) or int(numbers[-1]) < int(first):
            raise UsageError(f"'{text}' is not a list of CPUs", "give numbers and ranges, for example 0-3,8")
        cpus.update(range(int(first), int(numbers[-1]) + 1))
    return sorted(cpus)


def samples_from(text: str) -> int | None:
    if text.strip().lower() == "all":
        return None
    if not text.strip().isdecimal() or len(text.strip()) > 12 or int(text) < 1:
        raise UsageError(f"--samples is {text}", "give a number of images, at least 1, or all")
    return int(text)


R = TypeVar("R", bound="Record")
_arguments: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())


@contextmanager
def invoked(arguments: Sequence[str]) -> Iterator[None]:
    """Within it, `with_command` writes these arguments."""
    token = _arguments.set(tuple(arguments))
    try:
        yield
    finally:
        _arguments.reset(token)


def command_line() -> str:
    """The line that is running; "" where none is."""
    arguments = _arguments.get()
    return shlex.join(["vggdeploy", *arguments]) if arguments else ""


def with_command(record: R) -> R:
    """The record with the line that made it in its ``command``; as it is where no command line is running."""
    from msgspec.structs import replace

    line = command_line()
    return replace(record, command=line) if line else record


def rebuilt(
    bundle: Bundle, *, backends: Sequence[str] = (), variants: Sequence[str] = (), device: str | None = None
) -> Bundle:
    """The bundle, with an engine for this machine in place of each that does not fit."""
    from vggdeploy.engine.loading import rebuild_unfit
    from vggdeploy.types import Device

    where = Device.parse(device) if device else None
    with render.progress() as tell:
        for backend in backends or ("auto",):
            bundle = rebuild_unfit(bundle, backend=backend, variants=variants, device=where, on_progress=tell)
    return bundle


def fitted(bundle: Bundle, backends: Sequence[str], device: str | None = None) -> Bundle:
    """The bundle, with an engine that runs here for each of the backends that builds engines. What is built is said."""
    from vggdeploy.engine.fitting import with_fitting_engine
    from vggdeploy.runtime.registry import get_backend
    from vggdeploy.types import Device

    where = Device.parse(device) if device else None
    for backend in (get_backend(name) for name in backends):
        if backend.builds_on:
            with render.progress() as tell:
                bundle = with_fitting_engine(
                    bundle,
                    backend,
                    where,
                    on_build=lambda text: render.note(f"[dim]{render.escape(text)}[/]"),
                    on_progress=tell,
                )
    return bundle
