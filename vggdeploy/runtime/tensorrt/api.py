"""What TensorRT 10, TensorRT 11 and TensorRT for RTX share, for the builder and for the session: log, names, types.

The library's module is a parameter everywhere: the three have one API, and two of them can stand in one process.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from types import ModuleType
from typing import Any
from weakref import ref

from vggdeploy.bundle.precision import type_name
from vggdeploy.runtime.registry import get_engine, library_title
from vggdeploy.types import TensorSpec

# DataType members → NumPy's names; bfloat16 and the 8- and 4-bit floats have none there, and keep their own.
_NUMPY = {"FLOAT": "float32", "HALF": "float16"}
_KEPT_LINES = 5000

# In front "[file.cpp::f::12] Error Code 4: " or "IBuilder::build: Error Code 4: "; behind "In f at /src/x.cpp:12".
_PREFIX = re.compile(r"^(\[[^\]]*\]\s*|[\w:]+:\s+)?Error Code \d+:\s*")
_PLACE = re.compile(r"\s*\bIn \w+ at \S+:\d+|\[[\w.]+:\d+: \w+\]\s*")
_KIND = re.compile(r"([\w /-]+) \((.*)\)")  # Myelin (what it says)
# After every real error on a machine without a GPU the library logs that it cannot clear the CUDA error state.
_ECHO = "checkMacros.cpp::catchCudaError"


def backend_library(name: str) -> ModuleType:
    """The library that runs engines of that name. Raises as `Backend.import_library`."""
    return get_engine(name).import_library(to=f"run the {name} backend")


def title(library: Any) -> str:
    """``TensorRT for RTX 1.7.1.116``."""
    return f"{library_title(library.__name__)} {library.__version__}"


def numpy_name(dtype: Any) -> str:
    """A library's ``DataType`` as NumPy names it: ``float16``."""
    name: str = dtype.name
    return _NUMPY.get(name, name.lower())


def precision_name(dtype: Any) -> str:
    """A library's ``DataType`` as `Precision` names it: ``fp16``."""
    return type_name(dtype.name)


def tensor_spec(name: str, dtype: Any, shape: Any) -> TensorSpec:
    """A graph input or output; a dynamic batch axis (−1) becomes ``"N"``."""
    return TensorSpec(name, numpy_name(dtype), tuple("N" if n == -1 else int(n) for n in shape))


def new_runtime(library: Any, logger: Any, log: Log) -> Any:
    """A runtime of the library, or None where it could not start; ``log`` has the reason.

    Where CUDA does not start, the bindings wrap a null pointer (TensorRT 11.4): to use it, and to free it, ends the process
    with SIGSEGV. So a runtime that began with an error is none, and is never freed.
    """
    since = log.mark()
    runtime = library.Runtime(logger)
    if log.mark() == since:
        return runtime
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))
    return None


class Log:
    """Every line from ``INFO`` up, in order, and the errors of the current step."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._errors: deque[tuple[int, str]] = deque(maxlen=_KEPT_LINES)
        self._count = 0

    def add(self, severity: str, message: str) -> None:
        self.lines.append(f"[{severity}] {message}")
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._errors.append((self._count, message))
            self._count += 1

    def begin(self) -> None:
        """Start a step: errors of earlier ones are not its cause."""
        self._errors.clear()

    def mark(self) -> int:
        """Where a step starts that others may run beside: `cause` takes it."""
        return self._count

    def cause(self, since: int = 0) -> str:
        """Why the step failed, on one line: its first error, since those after it are consequences."""
        errors = [message for number, message in self._errors if number >= since]
        real = [e for e in errors if _ECHO not in e] or errors
        return in_words(real[0]) if real else "it gave no reason"

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)


def in_words(message: str) -> str:
    """An error of the library without its source files and its C++ expressions, on one line."""
    text = _PREFIX.sub("", " ".join(message.split()))
    if kind := _KIND.fullmatch(text):
        text = f"{kind[1]}: {kind[2]}"
    text = " ".join(_PLACE.sub("", text).split())
    # `Assertion failed: model->Parse(&input): Failed to parse`, `creator && "Plugin not found"`: the end is for people.
    text = re.sub(r"^Assertion failed: .*?\): (?=[A-Z])", "", text)
    return re.sub(r'^[^"]*&& "(.*)"$', r"\1", text) or "it gave no reason"


_collection = Lock()
_holders = 0
_was_enabled = False


@contextmanager
def no_collection(*, collect: bool = True) -> Iterator[None]:
    """No garbage collection while the library works: collected before, off inside, on again after the last user.

    ``collect=False`` leaves out the collection before, which takes a tenth of a second in a process that has torch: for
    short work in the middle of a service.

    The library logs through Python while it holds its own lock. A collection that starts in there and finds an old
    builder in a reference cycle frees it, which takes the same lock: the process stands still for ever.
    """
    global _holders, _was_enabled  # noqa: PLW0603  # the collector is one for the whole process
    with _collection:
        if _holders == 0:
            if collect:
                gc.collect()
            _was_enabled = gc.isenabled()
            gc.disable()
        _holders += 1
    try:
        yield
    finally:
        with _collection:
            _holders -= 1
            if _holders == 0 and _was_enabled:
                gc.enable()


_bridges: dict[type[Any], list[Any]] = {}
_bridging = Lock()


def logger_for(library: Any, log: Log) -> Any:
    """An ``ILogger`` of ``library`` that writes to ``log``, which the caller keeps alive.

    The library keeps the first one that it is given for the whole process, and asks it for lines of any session (its
    registry of plugins does): once freed, it would end the process. So none is freed. One whose log has gone gets the
    next: there are as many as there were sessions at the same time.
    """
    with _bridging:
        made = _bridges.setdefault(library.ILogger, [])
        free = next((bridge for bridge in made if bridge.told() is None), None)
        if free is None:
            free = _bridge_of(library.ILogger)()
            made.append(free)
        free.told = ref(log)
    return free


@cache
def _bridge_of(logger: type[Any]) -> type[Any]:
    def note(self: Any, severity: Any, message: str) -> None:
        log = self.told()
        # VERBOSE: a line for each tensor, and in some releases what is sparse.
        if log is not None and (severity.value <= logger.Severity.INFO.value or message.startswith("(Sparsity)")):
            log.add(severity.name, message)

    def start(self: Any) -> None:
        logger.__init__(self)
        self.told = lambda: None

    return type("LogBridge", (logger,), {"__init__": start, "log": note})
