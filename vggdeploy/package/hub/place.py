"""Where a bundle lies on a hub, and a connection to it."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vggdeploy.errors import UsageError, VggdeployError, first_line
from vggdeploy.system.optional import require

SCHEME = "hf://"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


@dataclass(frozen=True)
class Place:
    """``hf://OWNER/NAME``, with a branch, tag or commit behind an ``@`` where one is meant."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")

    @classmethod
    def parse(cls, text: str) -> Place:
        """
        Raises:
            UsageError: it is no such address.
        """
        repository, at, revision = text.removeprefix(SCHEME).partition("@")
        good = (
            text.startswith(SCHEME)
            and _REPOSITORY.fullmatch(repository)
            and ".." not in text
            and "--" not in repository
        )
        if not good or (at and not _REVISION.fullmatch(revision)):
            raise UsageError(f"'{text}' is no place on the Hub", "give hf://OWNER/NAME, or hf://OWNER/NAME@REVISION")
        return cls(repository, revision or None)


def hub() -> Any:
    """The library.

    Raises:
        MissingDependencyError: it is not installed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when it is imported
    return require("huggingface_hub", to="reach the Hugging Face Hub", extra="hub")


@contextmanager
def told(place: Place, doing: str) -> Iterator[None]:
    """The errors of the library and of its connection in one sentence; a token is in none of them.

    Raises:
        VggdeployError: it went wrong.
    """
    library = hub()
    kinds = (
        library.errors.HfHubHTTPError,
        library.errors.HFValidationError,
        OSError,
        ValueError,
        _connection_error(library),
    )
    try:
        yield
    except VggdeployError:
        raise
    except library.errors.RepositoryNotFoundError as error:
        raise VggdeployError(
            f"{place} cannot be {doing}: there is no such repository, or you may not see it",
            "check the name, and log in: hf auth login; or set HF_TOKEN",
        ) from error
    except kinds as error:
        raise VggdeployError(
            f"{place} cannot be {doing}: {first_line(error)[:300]}", "try again, or see HF_ENDPOINT"
        ) from error


def _connection_error(library: Any) -> type[Exception]:
    """That of the HTTP library which this version of huggingface_hub uses."""
    name = type(library.get_session()).__module__.partition(".")[0]
    kind: type[Exception] = importlib.import_module(name).HTTPError
    return kind
