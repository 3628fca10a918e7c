"""Optional dependencies: asked for by name, imported only when used, and missed in words."""

from __future__ import annotations

import importlib
import sys
import threading
from importlib.util import find_spec
from types import ModuleType

from vggdeploy.errors import IncompatibleError, MissingDependencyError, first_line

# These report that they are imported and used to their maker, by a package that they can do without.
_SENDERS = {"openvino": "openvino_telemetry", "nncf": "openvino_telemetry"}
_SENDER_HIDDEN = threading.RLock()


def installed(module: str) -> bool:
    """Whether ``module`` can be found, without importing it (of ``a.b``, Python has to import ``a``)."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # no such parent package, or one that does not import; a half-removed module
        return False


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    import importlib.metadata  # 27 ms that only a record of versions should pay

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def require(module: str, *, to: str, extra: str) -> ModuleType:
    """Import ``module``, or say what it is needed for and which extra brings it.

    Raises:
        MissingDependencyError: it is not installed.
        IncompatibleError: it is installed and does not import (a missing native library, usually).
    """
    if not installed(module):
        raise MissingDependencyError(
            f"the Python package '{module}' is needed to {to}, and it is not installed",
            f"pip install 'vggdeploy[{extra}]'",
        )
    try:
        return import_silent(module)
    except Exception as error:  # a broken native library answers with any error: RuntimeError and AttributeError too
        import importlib.metadata

        [home, *_] = importlib.metadata.packages_distributions().get(module.partition(".")[0], [module])
        raise IncompatibleError(
            f"the Python package '{module}' is installed but does not import: {first_line(error)}",
            f"reinstall it: pip install --force-reinstall {home}",
        ) from error


def import_silent(module: str) -> ModuleType:
    """Import ``module``; one that would report it to its maker does not find the package that sends the report.

    Python takes None among the loaded modules for "not there". What the program loaded before stays as it was.
    """
    sender = _SENDERS.get(module)
    if sender is None:
        return importlib.import_module(module)
    with _SENDER_HIDDEN:
        hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == sender}
        sys.modules[sender] = None  # type: ignore[assignment]  # Python's own way to say so
        try:
            return importlib.import_module(module)
        finally:
            del sys.modules[sender]
            sys.modules.update(hidden)
