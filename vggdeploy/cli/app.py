"""The ``vggdeploy`` command: the table of its verbs, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, NoReturn

import typer

from vggdeploy._version import __version__
from vggdeploy.cli import (
    bench,
    build,
    compare,
    curves,
    demo,
    distance,
    doctor,
    embed,
    evaluate,
    explain,
    export,
    fit,
    hub,
    inspect,
    nearest,
    optimize,
    package,
    predict,
    refit,
    render,
    report,
    search,
    serve,
    sign,
    summary,
    train,
    verify,
)
from vggdeploy.cli.help_pages import ALL, PAGES, START, Verb, Verbs, whole_help
from vggdeploy.cli.options import HABITS, VERBS, invoked
from vggdeploy.errors import EXIT_INTERRUPTED, UsageError, VggdeployError
from vggdeploy.system.cache import user_home
from vggdeploy.system.ending import watch

app = typer.Typer(
    name="vggdeploy",
    help="Take a VGG from PyTorch to proven ONNX, TorchScript and FP16 TensorRT.",
    cls=Verbs,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the order in which a newcomer needs them: that is the order of --help.
for command in (
    demo.demo,
    doctor.doctor,
    explain.explain,
    fit.fit,
    summary.summary,
    train.train,
    curves.curves,
    evaluate.evaluate,
    export.export,
    optimize.optimize,
    search.search,
    build.build,
    refit.refit,
    verify.verify,
    bench.bench,
    compare.compare,
    report.report,
    predict.predict,
    embed.embed,
    nearest.nearest,
    distance.distance,
    serve.serve,
    package.package,
    hub.push,
    hub.pull,
    sign.sign,
    sign.verify_signature,
    inspect.inspect,
):
    app.command(cls=Verb)(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vggdeploy {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Say nothing of progress and of what to do next: results and errors only."),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    everything: Annotated[bool, typer.Option(ALL, help="With a verb: show every option of it and exit.")] = False,
) -> None:
    """Take a VGG from PyTorch to proven ONNX, TorchScript and FP16 TensorRT."""
    if context.invoked_subcommand is None:
        width = max(len(line) for line, _ in START)
        for line, what in START:
            render.out.print(f"[bold]{line:<{width}}[/]  [dim]{what}[/]")
        raise typer.Exit(UsageError.exit_code)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code (the codes are listed in `vggdeploy.errors`)."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    if args[:1] != ["bench"]:
        # Before torch is imported: its threads would spin at every barrier, and where other processes want the cores
        # a batch takes many times as long. A measurement keeps each library's own default.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    watch()
    render.guard_streams()
    sys.exit(run(args))


# Understood anywhere on the line, as they are added after something went wrong.
ANYWHERE = ("--debug", "--quiet", "-q", ALL)


def run(args: Sequence[str]) -> int:
    """Run one command line; returns its exit code. Every error ends here."""
    end = list(args).index("--") if "--" in args else len(args)
    found = set(args[:end]).intersection(ANYWHERE)
    line = [a for i, a in enumerate(args) if i >= end or a not in ANYWHERE]
    if ALL in found:
        line = [*line, "--help"]
    with render.quiet(bool(found & {"--quiet", "-q"})), whole_help(ALL in found):
        return _run(line, debug="--debug" in found)


def _run(args: Sequence[str], *, debug: bool) -> int:
    os.environ.setdefault("HOME", str(user_home()))  # some libraries cannot even be imported where nobody knows one
    try:
        # A command returns its exit code, or nothing for 0.
        if new := _new_spelling(args):
            raise UsageError(f"vggdeploy {new[0]} is a command of its own", shlex.join(["vggdeploy", *new]))
        with invoked(args):
            code = app(args=list(args), prog_name="vggdeploy", standalone_mode=False)
    except VggdeployError as error:
        _say(error.cause, error.hint)
        code = error.exit_code
        _trace(debug)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # `vggdeploy … | head`: the reader has gone; so has the last flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        place = error.filename2 or error.filename  # of a copy that fails, the copy
        where = f"{place}: " if place else ""
        _say(f"{where}{error.strerror or error}", _OS_HINTS.get(error.errno or 0, "check the path and its permissions"))
        code = 1
        _trace(debug)
    except MemoryError:
        _say("out of memory", "use a smaller batch, a narrower model or a larger machine")
        code = 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # not Typer's own usage error: a bug of ours
            _say(f"{type(error).__name__}: {error}", "this is a bug: run again with --debug and report it")
            _trace(debug)
            return 1
        if not error.format_message():  # Typer printed the help, because nothing was asked for
            return 2
        _say(*_no_verb(error, args) or (error.format_message(), _usage_hint(error, args)))
        code = 2
    if code == EXIT_INTERRUPTED:  # Typer turns a Ctrl-C inside a command into this code
        _say("interrupted", "nothing half-written was left behind")
    return int(code or 0)


def _new_spelling(args: Sequence[str]) -> list[str] | None:
    """The line that says today what two commands were asked for before they became four."""
    verb, rest = args[:1], args[1:]
    flags = {part.partition("=")[0] for part in rest}
    if verb == ["optimize"] and "--max-accuracy-drop" in flags and "--step" not in flags:
        return ["search", *rest]
    if verb == ["bench"] and "--compare" in flags:
        return ["compare", *(part for part in rest if part != "--compare")]
    return None


_OS_HINTS = {
    errno.EBUSY: "it is a mount point, and cannot be replaced: mount the directory above it instead",
    errno.ENOSPC: "free some disk space, or write elsewhere; nothing half-written was left behind",
    errno.EDQUOT: "free some of your quota, or write elsewhere; nothing half-written was left behind",
    errno.EROFS: "this file system is read-only: write elsewhere",
    errno.EACCES: "you may not write there: choose another directory",
    errno.EPERM: "you may not write there: choose another directory",
}


def _commands() -> Iterator[tuple[str, Any]]:
    """Every verb with its parameters."""
    yield from typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]


def _no_verb(error: Exception, args: Sequence[str]) -> tuple[str, str] | None:
    """Cause and remedy where the verb is none; nothing where it is one."""
    context = getattr(error, "ctx", None)
    if getattr(context, "parent", None) is not None or not getattr(error, "message", "").startswith("No such command"):
        return None
    verbs = [name for name, _ in _commands()]
    at, wrong = next((i, a) for i, a in enumerate(args) if not a.startswith("-"))
    meant = [VERBS[wrong.lower()]] if wrong.lower() in VERBS else get_close_matches(wrong.lower(), verbs, n=1)
    if not meant:
        return f"'{wrong}' is no verb of vggdeploy", "see vggdeploy --help"
    return f"'{wrong}' is no verb of vggdeploy", f"did you mean: {shlex.join(['vggdeploy', *meant, *args[at + 1 :]])}"


def _usage_hint(error: Exception, args: Sequence[str]) -> str:
    """What to type instead: the habits of other tools are answered with our option, a typo with the closest one."""
    wrong = str(getattr(error, "option_name", "") or "")
    for habit, answer in HABITS.items():
        if wrong.lstrip("-").lower() == habit or any(a.lstrip("-").lower().startswith(f"{habit}=") for a in args):
            return answer
    context = getattr(error, "ctx", None)
    name = getattr(context, "command_path", "vggdeploy")
    known = [o for p in getattr(getattr(context, "command", None), "params", []) for o in getattr(p, "opts", [])]
    others = [verb for verb, command in _commands() if any(wrong in p.opts for p in command.params)]
    if 1 <= len(others) <= 2:
        return f"{wrong} belongs to {' and '.join(f'vggdeploy {verb}' for verb in others)}; see {name} --help"
    page = PAGES.get(name.split()[-1])
    if page and type(error).__name__ == "MissingParameter":  # Typer has its own copy of Click
        return f"for example: {page.example} (see {name} --help)"
    close = get_close_matches(wrong, known, n=1) if wrong else []
    return f"did you mean {close[0]}? See {name} --help" if close else f"see {name} --help"


def _say(cause: str, hint: str) -> None:
    render.error_line(cause, hint)


def _trace(debug: bool) -> None:
    if debug:
        traceback.print_exc()
